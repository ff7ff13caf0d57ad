// SPDX-License-Identifier: Apache-2.0
#include "draftflow/loader/ingest.h"

#include <fmt/format.h>

#include <charconv>
#include <map>
#include <optional>
#include <span>
#include <utility>

#include "draftflow/base/error.h"
#include "draftflow/base/text.h"
#include "draftflow/formats/feature_file.h"
#include "draftflow/ledger/ledger.h"
#include "draftflow/store/feature_store.h"
#include "loader/finite.h"

namespace draftflow {
namespace {

constexpr std::size_t kBatch = 64;  // refs of one ledger transaction
constexpr const char* kWidthFact = "target_hidden_size";

const Tensor& need_tensor(const TensorMap& tensors, const char* name) {
  if (const Tensor* tensor = find_tensor(tensors, name)) return *tensor;
  std::string names;
  for (const auto& [key, tensor] : tensors) {
    if (names.size() < 200) names += (names.empty() ? "" : ", ") + printable(key, 60);
  }
  throw InvalidArgument(
      fmt::format("there is no tensor '{}': an EAGLE-3 file has input_ids, loss_mask, hidden_state and "
                  "aux_hidden_state; this one has {}",
                  name, names.empty() ? "none" : names));
}

[[noreturn]] void refuse_tensor(const char* name, const Tensor& tensor, const std::string& wanted) {
  throw InvalidArgument(
      fmt::format("tensor '{}' is {} {}: {} is needed", name, dtype_name(tensor.dtype), shape_text(tensor.shape), wanted));
}

std::span<const std::int64_t> need_ids(const TensorMap& tensors, const char* name, std::optional<std::int64_t> length) {
  const Tensor& tensor = need_tensor(tensors, name);
  const bool fits = tensor.dtype == DType::kInt64 && tensor.shape.size() == 1 && tensor.shape[0] >= 1 &&
                    (!length || tensor.shape[0] == *length);
  if (!fits) refuse_tensor(name, tensor, length ? fmt::format("int64 [{}], as input_ids,", *length) : "int64 [T] with T >= 1");
  return tensor.as<std::int64_t>();
}

// "[0, 3, 17]": where in the tensor an element stands.
std::string position_text(const Tensor& tensor, std::int64_t element) {
  std::vector<std::int64_t> position(tensor.shape.size());
  for (std::size_t axis = position.size(); axis-- > 0;) {
    position[axis] = element % tensor.shape[axis];
    element /= tensor.shape[axis];
  }
  return shape_text(position);
}

// Returns the width. `width` 0: any.
std::int64_t check_states(const TensorMap& tensors, const char* name, std::int64_t length, std::int64_t width) {
  const Tensor& tensor = need_tensor(tensors, name);
  const bool floating = tensor.dtype == DType::kBFloat16 || tensor.dtype == DType::kFloat16 || tensor.dtype == DType::kFloat32;
  const bool fits = floating && tensor.shape.size() == 3 && tensor.shape[0] == 1 && tensor.shape[1] == length &&
                    tensor.shape[2] >= 1 && (width == 0 || tensor.shape[2] == width);
  if (!fits) {
    const std::string last = width == 0 ? "H" : std::to_string(width);
    refuse_tensor(name, tensor, fmt::format("bfloat16, float16 or float32 [1, {}, {}]", length, last));
  }
  if (const std::optional<NotFinite> bad = find_not_finite(tensor)) {
    throw InvalidArgument(fmt::format("tensor '{}' holds {} at {}: features must be finite; capture this sample again", name,
                                      bad->what, position_text(tensor, bad->element)));
  }
  return tensor.shape[2];
}

struct CheckedFile {
  std::int64_t tokens = 0, width = 0;
  std::vector<TokenCount> counts;
};

// A file may hold other values beside the tensors of a sample.
CheckedFile check_file(const FeatureFile& file) {
  for (const auto& [name, type] : file.values) {
    if (name == "input_ids" || name == "loss_mask" || name == "hidden_state" || name == "aux_hidden_state") {
      throw InvalidArgument(fmt::format("'{}' is a {}: a tensor is needed", name, type));
    }
  }
  const TensorMap& tensors = file.tensors;
  CheckedFile checked;
  const std::span<const std::int64_t> ids = need_ids(tensors, "input_ids", std::nullopt);
  checked.tokens = static_cast<std::int64_t>(ids.size());
  const std::span<const std::int64_t> mask = need_ids(tensors, "loss_mask", checked.tokens);
  std::map<std::int64_t, std::int64_t> counts;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0) throw InvalidArgument(fmt::format("tensor 'input_ids' holds {} at [{}]: token ids start at 0", ids[i], i));
    if (mask[i] != 0 && mask[i] != 1) {
      throw InvalidArgument(fmt::format("tensor 'loss_mask' holds {} at [{}]: 0 and 1 are allowed", mask[i], i));
    }
    if (mask[i] == 1) ++counts[ids[i]];
  }
  for (const auto& [token, count] : counts) checked.counts.push_back({.token = token, .count = count, .first_row = 0});
  checked.width = check_states(tensors, "hidden_state", checked.tokens, 0);
  check_states(tensors, "aux_hidden_state", checked.tokens, 3 * checked.width);
  return checked;
}

class Ingest {
 public:
  Ingest(Ledger& ledger, const IngestOptions& options, IngestReport& report)
      : options_(options), report_(report), ledger_(ledger) {
    if (ledger_.declared("kind")) declare_kind();  // Conflict before anything is read
    const std::string width = ledger_.declared(kWidthFact).value_or("0");
    std::from_chars(width.data(), width.data() + width.size(), width_);
  }

  void add(const std::filesystem::path& file, std::int64_t index) {
    const SampleId id(fmt::format("{}:{:08d}", options_.run_id, index));
    try {
      if (const std::optional<SampleRef> known = ledger_.get_committed(id)) {
        check_same_file(*known, file);
        ++report_.already;
        return;
      }
      read(file, id, index);
    } catch (const Error& error) {
      report_.failed.push_back({file, error.what()});
      return;
    }
    if (refs_.size() >= kBatch) flush();
  }

  void flush() {
    if (refs_.empty()) return;
    // Before the refs, so that no ref is ever committed to a set of unknown kind or width.
    declare_kind();
    ledger_.declare(kWidthFact, std::to_string(width_));
    const std::int64_t committed = ledger_.commit_samples(refs_, counts_);
    report_.committed += committed;
    report_.already += static_cast<std::int64_t>(refs_.size()) - committed;
    for (const SampleRef& ref : refs_) {
      report_.tokens += ref.num_tokens;
      report_.bytes += ref.estimated_bytes;
    }
    refs_.clear();
    counts_.clear();
  }

 private:
  void declare_kind() { ledger_.declare("kind", "offline"); }
  // The n-th file is sample n: a file added or removed since the last time would move all that follow.
  void check_same_file(const SampleRef& known, const std::filesystem::path& file) {
    const std::string uri = "file://" + std::filesystem::absolute(file).string();
    if (known.feature_store_uri == uri) return;
    throw Conflict(
        fmt::format("sample '{}' is committed as {}, but now it is {}: files were added to or removed from the folder; "
                    "ingest it into another ledger, or under another run id",
                    printable(known.sample_id.str()), printable(known.feature_store_uri), printable(uri)));
  }

  void read(const std::filesystem::path& path, const SampleId& id, std::int64_t index) {
    const FeatureFile file = read_feature_file(path);
    CheckedFile checked = check_file(file);
    if (width_ != 0 && checked.width != width_) {
      throw InvalidArgument(
          fmt::format("tensor 'hidden_state' is {} wide, but this set's other files are {} wide: one set has one "
                      "target model",
                      checked.width, width_));
    }
    PutMetadata metadata{.run_id = RunId(options_.run_id)};
    metadata.strategy = options_.strategy;
    metadata.num_tokens = checked.tokens;
    metadata.metadata = {
        {"format", "\"offline_eagle3\""}, {"file_index", std::to_string(index)}, {"target_repr", "\"hidden_state\""}};
    refs_.push_back(make_file_ref(path, file.tensors, id, metadata));
    counts_.push_back(std::move(checked.counts));
    width_ = checked.width;
  }

  const IngestOptions& options_;
  IngestReport& report_;
  Ledger& ledger_;
  std::int64_t width_ = 0;  // hidden_state's last extent, the same over the set; 0: no file read yet
  std::vector<SampleRef> refs_;
  std::vector<std::vector<TokenCount>> counts_;
};

// Looked for before the ledger is made.
std::vector<std::filesystem::path> files_of(const IngestOptions& options) {
  if (options.strategy != "eagle3") {
    throw InvalidArgument(fmt::format("ingest strategy '{}' is not known: 'eagle3' is", printable(options.strategy)));
  }
  if (options.limit < 0) throw InvalidArgument(fmt::format("ingest limit is {}: 0 (all) or more are allowed", options.limit));
  std::vector<std::filesystem::path> files = options.files.empty() ? list_feature_files(options.folder) : options.files;
  if (files.empty()) {
    throw NotFound(fmt::format("folder {} holds no feature file: .ckpt, .ckpt.gz and .safetensors are looked for",
                               options.folder.string()));
  }
  if (options.limit > 0 && static_cast<std::int64_t>(files.size()) > options.limit) {
    files.resize(static_cast<std::size_t>(options.limit), std::filesystem::path());
  }
  return files;
}

IngestReport ingest_files(Ledger& ledger, const std::vector<std::filesystem::path>& files, const IngestOptions& options,
                          const IngestCallback& on_file, const std::atomic<bool>& stop) {
  IngestReport report;
  Ingest ingest(ledger, options, report);
  const auto total = static_cast<std::int64_t>(files.size());
  for (; report.files < total && !stop.load();) {
    ingest.add(files[static_cast<std::size_t>(report.files)], report.files);
    ++report.files;
    if (on_file) on_file(report.files, total);
  }
  ingest.flush();
  return report;
}

}  // namespace

IngestReport run_ingest(const IngestOptions& options, const IngestCallback& on_file, const std::atomic<bool>& stop) {
  const std::vector<std::filesystem::path> files = files_of(options);
  const auto ledger = open_ledger(options.ledger.string());
  return ingest_files(*ledger, files, options, on_file, stop);
}

IngestReport run_ingest(Ledger& ledger, const IngestOptions& options, const IngestCallback& on_file,
                        const std::atomic<bool>& stop) {
  return ingest_files(ledger, files_of(options), options, on_file, stop);
}

}  // namespace draftflow
