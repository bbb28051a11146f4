// Runs the conformance cases of docs/conformance.md: MLA layers with weights, inputs, and what must
// come out, computed in double; and whole models with goldens beside their weights.

#include <algorithm>
#include <iostream>
#include <string>
#include <vector>

#include "conformance/command_line.hpp"
#include "programs/interrupt.hpp"

int main(int argc, char** argv) {
  mla::programs::end_at_interrupt("mla-conformance");
  const std::vector<std::string> words(argv + std::min(argc, 1), argv + argc);
  return mla::conformance::run_command_line(words, std::cout, std::cerr);
}
