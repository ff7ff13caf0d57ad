// SPDX-License-Identifier: Apache-2.0
//
// What C++ alone needs for the calls that Python makes, for `draftflow bench python`.
#include <fmt/format.h>

#include <chrono>
#include <ctime>

#include "draftflow/loader/batch_reader.h"
#include "python/handles.h"
#include "python/tensors.h"

namespace draftflow::python {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double cpu_seconds() {
  timespec now{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// This thread's seconds on a processor for `count` puts, gets and releases.
std::tuple<double, double, double> store_calls(StoreHandle& self, const py::dict& tensors, const std::string& prefix, int count,
                                               bool zero_copy) {
  const TensorMap map = tensors_from(tensors);
  const std::shared_ptr<FeatureStore> store = self.opened.get();
  const Unlocked unlocked;
  std::vector<SampleRef> refs;
  std::vector<FeatureHandle> handles;
  std::vector<Fetched> fetched;
  double start = cpu_seconds();
  for (int i = 0; i < count; ++i) {
    refs.push_back(store->put(map, SampleId(fmt::format("{}{}", prefix, i)), {.run_id = RunId("run")}));
  }
  const double put = cpu_seconds() - start;
  start = cpu_seconds();
  for (const SampleRef& ref : refs) fetched.push_back(store->get(ref, {.zero_copy = zero_copy}));
  const double get = cpu_seconds() - start;
  start = cpu_seconds();
  for (const Fetched& sample : fetched) store->release(sample.handle);
  return {put, get, cpu_seconds() - start};
}

// Seconds to read all of an offline set in batches.
double read_batches(LedgerHandle& ledger, StoreHandle& self, int window, int batch_size, int ahead, int epochs) {
  const std::shared_ptr<FeatureStore> store = self.opened.get();
  const Unlocked unlocked;
  const std::unique_ptr<Ledger> opened = ledger.open();
  const std::atomic<bool> stop{false};
  const auto start = std::chrono::steady_clock::now();
  BatchReader reader(make_offline_source(*opened, {.window = window, .epochs = epochs, .seed = 0, .position = 0, .share = {}}),
                     *store, {.batch_size = batch_size, .loader = {.windows_ahead = ahead, .check = SampleCheck::kFinite}});
  BatchAnswer answer = reader.next(stop, 60'000);
  while (answer.state == WindowState::kWindow) answer = reader.next(stop, 60'000);  // as a loop over batches holds the last one
  return seconds_since(start);
}

}  // namespace

void bind_bench(py::module_& module) {
  module.def("_bench_store", &store_calls, py::arg("store"), py::arg("tensors"), py::arg("prefix"), py::arg("count"),
             py::arg("zero_copy") = false);
  module.def("_bench_batches", &read_batches, py::arg("ledger"), py::arg("store"), py::arg("window"), py::arg("batch_size"),
             py::arg("ahead"), py::arg("epochs"));
}

}  // namespace draftflow::python
