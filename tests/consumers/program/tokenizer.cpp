#include <cstdio>
#include <exception>
#include <mla/text/tokenizer.hpp>

// What needs the libraries beneath mla/io and mla/text: JSON to read, expressions to split text.
int main() {
  try {
    mla::Tokenizer tokenizer("no such directory");
  } catch (const std::exception& error) {
    std::puts(error.what());
    return 0;
  }
  return 1;
}
