// SPDX-License-Identifier: Apache-2.0
#include "draftflow/flow/cross_check.h"
#include "python/handles.h"

namespace draftflow::python {
namespace {

// What `call` returns of both, while other Python threads run.
template <class Call>
auto with_both(LedgerHandle& ledger, StoreHandle& store, const Call& call) {
  const std::shared_ptr<FeatureStore> opened = store.opened.get();
  return ledger.with([&](Ledger& open) { return call(open, *opened); });
}

}  // namespace

void bind_flow(py::module_& module) {
  module.def(
      "check_store", [](LedgerHandle& ledger, StoreHandle& store) { return with_both(ledger, store, check_store); },
      py::arg("ledger"), py::arg("store"),
      "Conflict, naming both, if the ledger's samples are in another store. True: they are in this one; False: none of them "
      "tells yet.");
  module.def(
      "check_reader", [](LedgerHandle& ledger, StoreHandle& store) { return with_both(ledger, store, check_reader); },
      py::arg("ledger"), py::arg("store"),
      "check_store, and Conflict also for a stream of which only files in place are there yet, which file:// alone reads.");
  module.def(
      "declare_store", [](LedgerHandle& ledger, StoreHandle& store) { with_both(ledger, store, declare_store); },
      py::arg("ledger"), py::arg("store"),
      "For producers: writes down that the ledger's samples are in this store. Conflict, as check_store.");
}

}  // namespace draftflow::python
