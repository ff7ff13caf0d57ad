// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <pybind11/stl/filesystem.h>

#include <algorithm>
#include <chrono>
#include <mutex>

#include "draftflow/base/error.h"
#include "draftflow/base/text.h"
#include "draftflow/loader/batch_reader.h"
#include "draftflow/loader/ingest.h"
#include "draftflow/loader/padding.h"
#include "python/handles.h"
#include "python/tensors.h"

namespace draftflow::python {
namespace {

constexpr int kSliceMs = 100;  // how long a wait may keep a signal from Python

// A BatchReader with what it reads from. Its thread does not outlive a fork: a child must make its own.
class PyReader {
 public:
  PyReader(LedgerHandle& ledger, StoreHandle& store, const std::function<std::unique_ptr<WindowSource>(Ledger&)>& make_source,
           const BatchOptions& options)
      : store_(store.opened.get()) {
    ledger.opened.get();  // says so if it was closed, or cannot be opened here
    const Unlocked unlocked;
    ledger_ = ledger.open();
    reader_ = std::make_unique<BatchReader>(make_source(*ledger_), *store_, options);
  }

  // In a forked child the thread is not there, and what was inherited is the parent's.
  ~PyReader() {
    if (::getpid() == owner_) return;
    static_cast<void>(reader_.release());
    static_cast<void>(ledger_.release());
    new std::shared_ptr<FeatureStore>(std::move(store_));
  }

  // None: not in time; False: the end.
  py::object next(std::optional<double> timeout_s) {
    if (timeout_s && !(*timeout_s >= 0))
      throw InvalidArgument(fmt::format("timeout_s is {}: 0 or more is allowed", *timeout_s));
    const auto start = std::chrono::steady_clock::now();
    while (true) {
      if (!reader_ || ::getpid() != owner_) {
        throw InvalidArgument("the reader was closed, or belongs to the process that this one was forked from: make another");
      }
      int slice = kSliceMs;
      if (timeout_s) {
        const double spent = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        slice = static_cast<int>(std::clamp(1000 * (*timeout_s - spent), 0.0, static_cast<double>(kSliceMs)));
      }
      BatchAnswer answer = [&]() -> BatchAnswer {
        const Unlocked unlocked;
        const std::lock_guard turn(mutex_);
        if (!reader_) return {};
        return reader_->next(stop_, slice);
      }();
      if (answer.batch) return py::cast(std::move(*answer.batch));
      if (answer.state == WindowState::kEndOfStream) return py::bool_(false);
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
      if (timeout_s && std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() >= *timeout_s)
        return py::none();
    }
  }

  void close() {
    if (::getpid() != owner_) return;
    const Unlocked unlocked;
    const std::lock_guard turn(mutex_);
    if (reader_) wait_seconds_ = reader_->wait_seconds();
    reader_.reset();
    ledger_.reset();
    store_.reset();
  }

  double wait_seconds() {
    if (::getpid() != owner_) return wait_seconds_;
    const Unlocked unlocked;
    const std::lock_guard turn(mutex_);
    return reader_ ? reader_->wait_seconds() : wait_seconds_;
  }

 private:
  std::mutex mutex_;  // of those who wait for a batch and who closes, without Python's lock
  std::shared_ptr<FeatureStore> store_;
  std::unique_ptr<Ledger> ledger_;
  std::unique_ptr<BatchReader> reader_;  // last: its thread uses the others
  const std::atomic<bool> stop_{false};
  const pid_t owner_ = ::getpid();
  double wait_seconds_ = 0;
};

SampleCheck check_from(const std::string& name) {
  if (name == "eagle3") return SampleCheck::kEagle3;
  if (name == "finite") return SampleCheck::kFinite;
  throw InvalidArgument(fmt::format("check is '{}': 'eagle3' and 'finite' are allowed", printable(name, 80)));
}

BatchOptions options_from(int batch_size, int reader, int readers, int ahead, const std::string& check,
                          std::int64_t hidden_size, std::int64_t vocab_size) {
  return {.batch_size = batch_size,
          .reader = reader,
          .readers = readers,
          .loader = {.windows_ahead = ahead, .hidden_size = hidden_size, .vocab_size = vocab_size, .check = check_from(check)}};
}

py::dict failed_to(const PaddedBatch& batch) {
  py::dict made;
  for (const auto& [id, reason] : batch.failed) made[py::str(id.str())] = reason;
  return made;
}

// A folder, a file, or files in the caller's order.
IngestOptions sources_from(const py::object& sources) {
  const bool one = py::isinstance<py::str>(sources) || py::isinstance<py::bytes>(sources) || py::hasattr(sources, "__fspath__");
  IngestOptions options;
  if (one) {
    options.folder = sources.cast<std::filesystem::path>();
    if (std::filesystem::is_regular_file(options.folder)) options.files = {options.folder};
    return options;
  }
  for (const py::handle file : sources) options.files.push_back(file.cast<std::filesystem::path>());
  if (options.files.empty()) throw InvalidArgument("there is no file to ingest: the list is empty");
  return options;
}

py::dict report_to(const IngestReport& report) {
  py::dict made, failed;
  for (const IngestFailure& failure : report.failed) {
    failed[py::str(py::cast(failure.file))] = printable(failure.reason, 4096);
  }
  made["files"] = report.files;
  made["committed"] = report.committed;
  made["already"] = report.already;
  made["tokens"] = report.tokens;
  made["bytes"] = report.bytes;
  made["failed"] = failed;
  return made;
}

py::dict ingest(LedgerHandle& self, const py::object& sources, const std::string& run_id, const std::string& strategy,
                std::int64_t limit) {
  IngestOptions options = sources_from(sources);
  options.run_id = run_id;
  options.strategy = strategy;
  options.limit = limit;
  self.opened.get();  // says so if it was closed, or cannot be opened here
  IngestReport report;
  {
    const Unlocked unlocked;
    const std::unique_ptr<Ledger> ledger = self.open();  // other threads use theirs meanwhile
    const std::atomic<bool> stop{false};
    PacedCheck check;
    report = run_ingest(
        *ledger, options, [&](std::int64_t, std::int64_t) { check(); }, stop);
  }
  if (report.committed + report.already == 0) {
    throw Corrupt(fmt::format("none of the {} feature files could be used; of {} it is said: {}", report.files,
                              printable(report.failed.front().file.string(), 1000),
                              printable(report.failed.front().reason, 4096)));
  }
  return report_to(report);
}

void bind_ingest(py::module_& module) {
  using LedgerClass = py::class_<LedgerHandle, std::shared_ptr<LedgerHandle>>;
  LedgerClass(module.attr("Ledger"))
      .def("ingest_features", &ingest, py::arg("sources"), py::kw_only(), py::arg("run_id") = "offline",
           py::arg("strategy") = "eagle3", py::arg("limit") = 0,
           "An offline set of feature files where they lie, as `draftflow ingest` makes it: a folder, by path; a file; or "
           "files in their order. The n-th is sample 'run_id:n'; each is read and checked once, its tokens counted, and what "
           "is there is skipped. Counts, and as 'failed' {file: why} what was left out. NotFound: no file; Corrupt: none of "
           "them could be used.");
}

// Dicts, or other mappings, as a Sample.
std::vector<TensorMap> maps_from(const std::vector<py::object>& samples) {
  std::vector<TensorMap> maps;
  for (const py::object& sample : samples) {
    if (!py::hasattr(sample, "keys")) {
      throw py::type_error(fmt::format("sample {} is a {}: a mapping of names to tensors is taken", maps.size(),
                                       py::str(py::type::of(sample).attr("__qualname__")).cast<std::string>()));
    }
    maps.push_back(tensors_from(py::dict(sample)));
  }
  return maps;
}

py::object pad(const std::vector<py::object>& samples, bool return_lengths, const std::string& framework) {
  const Framework wanted = framework_from(framework);
  const std::vector<TensorMap> maps = maps_from(samples);
  std::vector<const TensorMap*> pointers;
  std::vector<std::int64_t> lengths;
  for (const TensorMap& map : maps) {
    pointers.push_back(&map);
    lengths.push_back(sample_length(map));
  }
  BufferPool pool(0);
  TensorMap batch;
  {
    const Unlocked unlocked;
    batch = pad_batch(pointers, pool);
  }
  py::dict tensors = tensors_to(batch, false, wanted, py::none());
  if (!return_lengths) return tensors;
  return py::make_tuple(tensors, lengths);
}

void bind_padding(py::module_& module) {
  module.def("offline_windows_per_epoch", &offline_windows_per_epoch, py::arg("refs"), py::arg("window"));
  module.def(
      "pad_batch", &pad, py::arg("samples"), py::kw_only(), py::arg("return_lengths") = false, py::arg("framework") = "torch",
      "Samples of different lengths as one batch, padded on the right with zeros: [T, ...] and [1, T, ...] become [B, max T, "
      "...], T being the length of input_ids. return_lengths: (batch, [T of each row]). ValueError, naming the tensor, for "
      "samples that do not fit together.");
}

}  // namespace

void bind_loader(py::module_& module) {
  py::class_<PaddedBatch>(module, "PaddedBatch", "A batch as BatchReader gives it.")
      .def_readonly("window", &PaddedBatch::window)
      .def_readonly("index", &PaddedBatch::index)
      .def_readonly("last", &PaddedBatch::last)
      .def_readonly("sample_ids", &PaddedBatch::sample_ids)
      .def_readonly("lengths", &PaddedBatch::lengths)
      .def_property_readonly("failed", &failed_to)
      .def(
          "tensors",
          [](const PaddedBatch& batch, const std::string& framework, const py::object& device) {
            return tensors_to(batch.tensors, false, framework_from(framework), device);
          },
          py::arg("framework") = "torch", py::arg("device") = py::none());
  py::class_<PyReader>(module, "BatchReader",
                       "A rank's share of each window as padded batches, fetched ahead on a thread of its own.")
      .def_static(
          "of_stream",
          [](LedgerHandle& ledger, StoreHandle& store, const std::string& group, std::int64_t timeline,
             std::int64_t first_window, int rank, int width, int batch_size, int reader, int readers, int ahead,
             const std::string& check, std::int64_t hidden_size, std::int64_t vocab_size) {
            const auto source = [&](Ledger& opened) {
              return make_stream_source(opened, GroupId(group), {.number = timeline, .first_window = first_window},
                                        {.rank = rank, .width = width});
            };
            return std::make_unique<PyReader>(ledger, store, source,
                                              options_from(batch_size, reader, readers, ahead, check, hidden_size, vocab_size));
          },
          py::arg("ledger"), py::arg("store"), py::kw_only(), py::arg("group"), py::arg("timeline"), py::arg("first_window"),
          py::arg("rank") = 0, py::arg("width") = 1, py::arg("batch_size") = 0, py::arg("reader") = 0, py::arg("readers") = 1,
          py::arg("ahead") = 2, py::arg("check") = "eagle3", py::arg("hidden_size") = 0, py::arg("vocab_size") = 0)
      .def_static(
          "of_offline_set",
          [](LedgerHandle& ledger, StoreHandle& store, int window, int epochs, std::uint64_t seed, std::int64_t position,
             int rank, int width, int batch_size, int reader, int readers, int ahead, const std::string& check,
             std::int64_t hidden_size, std::int64_t vocab_size) {
            const auto source = [&](Ledger& opened) {
              return make_offline_source(opened, {.window = window,
                                                  .epochs = epochs,
                                                  .seed = seed,
                                                  .position = position,
                                                  .share = {.rank = rank, .width = width}});
            };
            return std::make_unique<PyReader>(ledger, store, source,
                                              options_from(batch_size, reader, readers, ahead, check, hidden_size, vocab_size));
          },
          py::arg("ledger"), py::arg("store"), py::kw_only(), py::arg("window"), py::arg("epochs") = 1, py::arg("seed") = 0,
          py::arg("position") = 0, py::arg("rank") = 0, py::arg("width") = 1, py::arg("batch_size") = 0, py::arg("reader") = 0,
          py::arg("readers") = 1, py::arg("ahead") = 2, py::arg("check") = "eagle3", py::arg("hidden_size") = 0,
          py::arg("vocab_size") = 0)
      .def("next", &PyReader::next, py::arg("timeout_s") = py::none(), "The next batch; None: not in time; False: the end.")
      .def("close", &PyReader::close, "Ends its thread; bounded by one read.")
      .def_property_readonly("wait_seconds", &PyReader::wait_seconds);
  bind_padding(module);
  bind_ingest(module);
}

}  // namespace draftflow::python
