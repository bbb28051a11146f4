// The extension module mla._mla. mla/__init__.pyi documents shapes for readers of Python.

#include <pybind11/pybind11.h>

#include "machine.hpp"
#include "mla/version.hpp"

PYBIND11_MODULE(_mla, module) {
  module.attr("__version__") = MLA_VERSION;
  mla::python::define_attention(module);
  mla::python::define_models(module);
  mla::python::define_conformance(module);
}
