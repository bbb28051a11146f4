// The conformance cases of docs/conformance.md, run from Python.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <vector>

#include "conformance/run_path.hpp"
#include "machine.hpp"
#include "mla/core/weight_view.hpp"
#include "programs/isa_names.hpp"

namespace mla::python {
namespace {

conformance::Options options_of(const std::optional<std::string>& isa, const std::string& mode,
                                const std::string& weights, const std::string& cache,
                                double tolerance, const std::string& model) {
  conformance::Options options;
  if (isa) options.kernels = programs::parse_isa(*isa);
  if (form_of(mode) != AttentionForm::automatic) options.modes = {form_of(mode)};
  require(weights == "f32" || weights == "bf16", "weights must be f32 or bf16, got ", weights);
  if (weights == "bf16") options.weights = WeightFormat::bfloat16;
  options.cache = cache_format_of(cache);
  require(tolerance >= 0.0, "tolerance must not be negative, got ", tolerance);
  options.model_tolerance = tolerance;
  options.model = model;
  return options;
}

std::vector<conformance::Report> run(const std::string& path, const std::optional<std::string>& isa,
                                     const std::string& mode, const std::string& weights,
                                     const std::string& cache, double tolerance,
                                     const std::string& model) {
  const auto options = options_of(isa, mode, weights, cache, tolerance, model);
  const py::gil_scoped_release without_gil;
  std::vector<conformance::Report> reports;
  conformance::run_path(path, options,
                        [&](const conformance::Report& report) { reports.push_back(report); });
  return reports;
}

}  // namespace

void define_conformance(py::module_& module) {
  using conformance::Check;
  using conformance::Report;
  py::class_<Check>(module, "ConformanceCheck")
      .def_readonly("name", &Check::name)
      .def_readonly("error", &Check::error)
      .def_readonly("largest", &Check::largest)
      .def_readonly("tolerance", &Check::tolerance)
      .def_property_readonly("passed", &Check::passed)
      .def("__repr__", &Check::text);
  py::class_<Report>(module, "ConformanceReport")
      .def_readonly("name", &Report::name)
      .def_readonly("mode", &Report::mode)
      .def_readonly("checks", &Report::checks)
      .def_property_readonly("passed", &Report::passed)
      .def("__repr__", &Report::line);
  module.def("conformance", &run, py::arg("path"), py::kw_only(), py::arg("isa") = py::none(),
             py::arg("mode") = "automatic", py::arg("weights") = "f32", py::arg("cache") = "f32",
             py::arg("tolerance") = 1e-3, py::arg("model") = "");
}

}  // namespace mla::python
