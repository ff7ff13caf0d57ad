// SPDX-License-Identifier: Apache-2.0
#include "python/bindings.h"

PYBIND11_MODULE(_core, module) {
  module.doc() = "draftflow's C++ core; the package draftflow is what to import.";
  using namespace draftflow::python;
  bind_errors(module);
  bind_tensors(module);
  bind_records(module);
  bind_ledger(module);
  bind_store(module);
  bind_flow(module);
  bind_loader(module);
  bind_formats(module);
  bind_bench(module);
  bind_compat(module);
  module.attr("__version__") = DRAFTFLOW_VERSION;
}
