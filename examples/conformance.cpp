// Runs the conformance cases of docs/conformance.md: MLA layers with weights, inputs, and what must
// come out, computed in double; and whole models with goldens beside their weights.

#include <iostream>
#include <string>
#include <vector>

#include "conformance/command_line.hpp"

int main(int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  return mla::conformance::run_command_line(words, std::cout, std::cerr);
}
