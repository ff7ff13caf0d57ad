// SPDX-License-Identifier: Apache-2.0
#include "store/memory/memory_store.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstring>
#include <utility>

#include "draftflow/base/error.h"
#include "draftflow/base/random.h"
#include "draftflow/base/text.h"
#include "store/ref_maker.h"
#include "store/shared_dir/forks.h"

namespace draftflow::store {
namespace {

constexpr std::uint64_t kFirstGenerations = 1ULL << 52;  // leaves as many again: a generation fits in 53 bits
constexpr std::uint64_t kForkStride = 1ULL << 44;        // a child goes on somewhere within so many
constexpr std::size_t kVisitAtOnce = 256;                // entries of a walk under one lock

std::uint64_t random_below(std::uint64_t power_of_two) {
  const std::string hex = random_hex128();
  std::uint64_t value = 0;
  std::from_chars(hex.data(), hex.data() + 16, value, 16);
  return value & (power_of_two - 1);
}

std::string quote(std::string_view text) {
  std::string quoted;
  for (const char c : text) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '.' ||
                       c == '-' || c == '~';
    if (plain) {
      quoted += c;
    } else {
      quoted += fmt::format("%{:02X}", static_cast<unsigned char>(c));
    }
  }
  return quoted;
}

std::uint64_t free_memory() {
  const long pages = ::sysconf(_SC_AVPHYS_PAGES), page = ::sysconf(_SC_PAGESIZE);
  return pages > 0 && page > 0 ? static_cast<std::uint64_t>(pages) * static_cast<std::uint64_t>(page) : 0;
}

double seconds(std::int64_t ms) {
  return static_cast<double>(std::max<std::int64_t>(ms, 0)) / 1000;
}

}  // namespace

std::string memory_uri(const StoreId& store_id, const SampleId& sample_id, std::uint64_t generation) {
  return fmt::format("mem://{}/{}?generation={}", store_id.str(), quote(sample_id.str()), generation);
}

// The bytes that a put will need, held against the cap until they are on the books or the put has failed.
class MemoryStore::Reservation {
 public:
  Reservation(MemoryStore& store, const SampleId& sample_id, std::uint64_t bytes) : store_(store), bytes_(bytes) {
    const std::lock_guard lock(store.mutex_);
    const std::uint64_t cap = store.options_.max_resident_bytes, resident = store.resident_bytes();
    if (cap > 0 && (resident > cap || cap - resident < bytes)) {
      throw Exhausted(
          fmt::format("put of sample '{}' asks for {} bytes, but store '{}' in memory may hold {} and has {} "
                      "resident: free samples, then retry",
                      printable(sample_id.str()), bytes, printable(store.id_.str()), cap, resident));
    }
    store.reserved_bytes_ += bytes;
  }
  Reservation(const Reservation&) = delete;
  Reservation& operator=(const Reservation&) = delete;
  ~Reservation() {
    if (bytes_ == 0) return;
    const std::lock_guard lock(store_.mutex_);
    store_.reserved_bytes_ -= bytes_;
  }
  void turn_into_residence() {  // with the mutex held
    store_.reserved_bytes_ -= bytes_;
    store_.resident_bytes_ += std::exchange(bytes_, 0);
  }

 private:
  MemoryStore& store_;
  std::uint64_t bytes_;
};

MemoryStore::MemoryStore(const StoreId& id, const MemoryOptions& options)
    : id_(id),
      options_(options),
      incarnation_(random_hex128()),
      made_ms_(clock_ms()),
      pool_(kMaxIdleBytes),
      last_generation_(random_below(kFirstGenerations)),
      forks_(forks_of_this_process()),
      token_prefix_(random_hex128()) {}

std::int64_t MemoryStore::clock_ms() const {
  if (options_.clock_ms) return options_.clock_ms();
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::milliseconds>(now).count();
}

std::string MemoryStore::describe(const SampleId& sample_id, std::uint64_t generation) const {
  return fmt::format("sample '{}' generation {} of store '{}'", printable(sample_id.str()), generation, printable(id_.str()));
}

std::string MemoryStore::why_foreign(const SampleRef& ref) const {
  if (ref.feature_store_uri != memory_uri(id_, ref.sample_id, ref.generation)) {
    return fmt::format("its URI is '{}'", printable(ref.feature_store_uri));
  }
  if (ref.incarnation == incarnation_) return "";
  return fmt::format("it is of incarnation '{}', but the store here is incarnation '{}': a store in memory ends with its owner",
                     printable(ref.incarnation), incarnation_);
}

void MemoryStore::throw_not_found(const SampleId& sample_id, std::uint64_t generation) const {
  throw NotFound(
      fmt::format("{} is not in memory: it was freed, superseded or never written; put it again or ask for a current ref",
                  describe(sample_id, generation)));
}

void MemoryStore::check_ours(const SampleRef& ref) const {
  const std::string why = why_foreign(ref);
  if (why.empty()) return;
  throw NotFound(fmt::format("{} is not here: {}", describe(ref.sample_id, ref.generation), why));
}

const Tensor& MemoryStore::stored(const Entry& entry, const FeatureSpec& spec) const {
  const std::string what = describe(entry.sample_id, entry.generation);
  const Tensor* tensor = find_tensor(entry.tensors, spec.name);
  if (tensor == nullptr) {
    throw Corrupt(fmt::format("{} has no tensor '{}', which the ref names: the ref was changed since put made it", what,
                              printable(spec.name)));
  }
  check_against_spec(spec, tensor->dtype, tensor->shape, what);
  return *tensor;
}

Tensor MemoryStore::copy(const Tensor& tensor) {
  auto [copied, out] = pool_.allocate(tensor.dtype, tensor.shape);
  if (!out.empty()) std::memcpy(out.data(), tensor.bytes.data(), out.size());
  return copied;
}

TensorMap MemoryStore::copy(const Entry& entry, const std::vector<const FeatureSpec*>& specs) {
  TensorMap tensors;
  for (const FeatureSpec* spec : specs) tensors.emplace_back(spec->name, copy(stored(entry, *spec)));
  return tensors;
}

void MemoryStore::leave_the_parent() {
  const std::uint64_t forks = forks_of_this_process();
  if (forks == forks_) return;
  const std::uint64_t stride = random_below(kForkStride);
  token_prefix_ = random_hex128();
  last_generation_ += stride;
  forks_ = forks;
}

SampleRef MemoryStore::put(const TensorMap& tensors, const SampleId& sample_id, const PutMetadata& metadata,
                           const PutFence& fence) {
  check_put(tensors, sample_id, metadata);
  const std::uint64_t bytes = bytes_of(tensors);
  const std::int64_t now = now_ms();
  Reservation reservation(*this, sample_id, bytes);
  std::uint64_t generation = 0;
  std::int64_t put_ms = 0;
  {
    const std::lock_guard lock(mutex_);
    leave_the_parent();
    generation = ++last_generation_;
    put_ms = last_put_ms_ = std::max(last_put_ms_, now);  // so that the order of generations is that of ages
  }
  SampleRef ref = make_ref(tensors, sample_id, metadata, memory_uri(id_, sample_id, generation), sample_id.str() + "/");
  ref.generation = generation;
  ref.incarnation = incarnation_;
  const Shared entry(new Entry{sample_id, generation, bytes, put_ms, {}});
  for (const auto& [name, tensor] : tensors) entry->tensors.emplace_back(name, copy(tensor));
  ask(fence, sample_id);  // numbers are given in order: taken_over asks for nothing more
  publish(entry, reservation);
  return ref;
}

void MemoryStore::publish(const Shared& entry, Reservation& reservation) {
  ByGeneration fresh{{entry->generation, entry}};
  Shared superseded;
  bool freeing = false;
  {
    const std::lock_guard lock(mutex_);
    Shared& current = current_[entry->sample_id];  // nothing below allocates
    books_.merge(fresh);
    reservation.turn_into_residence();
    sum_of_put_ms_ += entry->put_ms;
    superseded = entry;
    if (current == nullptr || current->generation < entry->generation) std::swap(superseded, current);
    if (superseded != nullptr) freeing = supersede(*superseded);
  }
  if (freeing) free(superseded);
}

MemoryStore::Shared MemoryStore::current(const SampleId& sample_id, std::uint64_t generation) const {
  const auto found = current_.find(sample_id);
  return found != current_.end() && found->second->generation == generation ? found->second : nullptr;
}

bool MemoryStore::supersede(Entry& entry) {
  entry.state = entry.leases > 0 ? State::kRetired : State::kFreeing;
  return entry.state == State::kFreeing;
}

bool MemoryStore::retire(Entry& entry) {
  current_.erase(entry.sample_id);
  return supersede(entry);
}

bool MemoryStore::end_lease(Entry& entry, bool consume) {
  --entry.leases;
  entry.consumed |= consume && options_.kind == StoreKind::kConsumeOnce;
  if (entry.leases > 0) return false;
  if (entry.state == State::kRetired) return supersede(entry);
  return entry.consumed && retire(entry);
}

bool MemoryStore::free(const Shared& entry) {
  bool gone = true;
  try {
    if (options_.try_physical_free) gone = options_.try_physical_free(entry->sample_id, entry->generation);
  } catch (...) {  // the verb that led here has done its work
    gone = false;
  }
  const std::lock_guard lock(mutex_);
  if (!gone) {
    entry->state = State::kPending;
    pending_.insert(books_.extract(entry->generation));
    return false;
  }
  if (books_.erase(entry->generation) == 0) pending_.erase(entry->generation);
  resident_bytes_ -= entry->bytes;
  sum_of_put_ms_ -= entry->put_ms;
  freed_bytes_ += entry->bytes;
  ++freed_;
  return true;
}

TensorMap MemoryStore::read(const SampleRef& ref, const std::vector<std::string>& names) {
  const std::vector<const FeatureSpec*> specs = own_specs_to_read(ref, names);
  check_ours(ref);
  Shared entry;
  {
    const std::lock_guard lock(mutex_);
    entry = current(ref.sample_id, ref.generation);
  }
  if (entry == nullptr) throw_not_found(ref.sample_id, ref.generation);
  return copy(*entry, specs);
}

Fetched MemoryStore::get(const SampleRef& ref, const GetOptions& options) {
  const std::vector<const FeatureSpec*> specs = own_specs_to_read(ref, options.names);
  check_ours(ref);
  Fetched fetched{{}, {ref.sample_id, ref.generation, ""}};
  Shared entry;
  {
    const std::lock_guard lock(mutex_);
    leave_the_parent();
    entry = current(ref.sample_id, ref.generation);
    if (entry != nullptr) {
      fetched.handle.lease_token = fmt::format("{}.{}", token_prefix_, ++next_lease_);
      leases_.emplace(fetched.handle.lease_token, entry);
      ++entry->leases;
    }
  }
  if (entry == nullptr) throw_not_found(ref.sample_id, ref.generation);
  try {
    if (options.zero_copy) {
      for (const FeatureSpec* spec : specs) fetched.tensors.emplace_back(spec->name, stored(*entry, *spec));
    } else {
      fetched.tensors = copy(*entry, specs);
    }
  } catch (...) {
    end_lease(fetched.handle, /*consume=*/false);
    throw;
  }
  return fetched;
}

void MemoryStore::release(const FeatureHandle& handle) {
  end_lease(handle, /*consume=*/!options_.retain_on_release);
}

void MemoryStore::end_lease(const FeatureHandle& handle, bool consume) {
  Shared entry;
  bool freeing = false;
  {
    const std::lock_guard lock(mutex_);
    const auto found = leases_.find(handle.lease_token);
    if (found == leases_.end() || found->second->generation != handle.generation ||
        found->second->sample_id != handle.sample_id) {
      return;
    }
    entry = std::move(found->second);
    leases_.erase(found);
    freeing = end_lease(*entry, consume);
  }
  if (freeing) free(entry);
}

bool MemoryStore::remove(const SampleRef& ref) {
  if (!why_foreign(ref).empty()) return false;
  Shared entry;
  bool freeing = false;
  {
    const std::lock_guard lock(mutex_);
    entry = current(ref.sample_id, ref.generation);
    if (entry == nullptr) return false;
    freeing = retire(*entry);
  }
  if (freeing) free(entry);
  return true;
}

std::uint64_t MemoryStore::abort(const SampleId& sample_id) {
  Shared entry;
  bool freeing = false;
  {
    const std::lock_guard lock(mutex_);
    const auto found = current_.find(sample_id);
    if (found == current_.end()) return 0;
    entry = found->second;
    freeing = retire(*entry);
  }
  if (freeing) free(entry);
  return 1;
}

std::vector<MemoryStore::Shared> MemoryStore::take_what_gc_frees(std::int64_t now) {
  const std::lock_guard lock(mutex_);
  std::vector<Shared> due;
  for (const auto& [generation, entry] : pending_) {
    if (entry->state == State::kPending) due.push_back(entry);
  }
  for (const auto& [generation, entry] : books_) {
    if (options_.max_hold_age_ms == 0 || now - entry->put_ms <= options_.max_hold_age_ms) break;
    if (entry->state == State::kCurrent && entry->leases == 0) due.push_back(entry);
  }
  for (const Shared& entry : due) {  // nothing allocates: all of them or none
    if (entry->state == State::kCurrent) {
      entry->forced = true;
      retire(*entry);
    }
    entry->state = State::kFreeing;
  }
  return due;
}

GcReport MemoryStore::gc() {
  GcReport report;
  for (Shared& due : take_what_gc_frees(now_ms())) {
    const Shared entry = std::move(due);
    if (!free(entry)) {
      ++report.release_pending;
      continue;
    }
    ++report.generations_removed;
    report.force_freed += entry->forced ? 1 : 0;
    report.bytes_removed += entry->bytes;
  }
  return report;
}

StoreHealth MemoryStore::health() {
  StoreHealth health{.store_id = id_.str(), .backend = "memory", .incarnation = incarnation_, .kind = options_.kind};
  health.max_resident_bytes = options_.max_resident_bytes;
  health.free_bytes = free_memory();
  const std::int64_t now = now_ms();
  const std::lock_guard lock(mutex_);
  health.resident_samples = books_.size() + pending_.size();
  health.resident_bytes = resident_bytes();
  health.live_leases = leases_.size();
  health.release_pending = pending_.size();
  health.freed_total = freed_;
  health.freed_bytes_total = freed_bytes_;
  if (health.resident_samples == 0) return health;
  std::int64_t oldest_ms = now;
  for (const ByGeneration* entries : {&books_, &pending_}) {
    if (!entries->empty()) oldest_ms = std::min(oldest_ms, entries->begin()->second->put_ms);
  }
  const double average_ms = static_cast<double>(sum_of_put_ms_) / static_cast<double>(health.resident_samples);
  health.average_age_s = std::max(0.0, (static_cast<double>(now) - average_ms) / 1000);
  health.oldest_age_s = std::max(health.average_age_s, seconds(now - oldest_ms));
  return health;
}

void MemoryStore::for_each(const std::function<bool(const ResidentSample&)>& visit,
                           const std::function<void(const std::filesystem::path&, const std::string&)>&) {
  const std::int64_t now = now_ms();
  std::uint64_t last = 0;
  for (std::size_t looked_at = kVisitAtOnce; looked_at == kVisitAtOnce;) {
    std::vector<ResidentSample> found;
    {
      const std::lock_guard lock(mutex_);
      looked_at = 0;
      for (auto at = books_.upper_bound(last); at != books_.end() && looked_at < kVisitAtOnce; ++at, ++looked_at) {
        const Entry& entry = *at->second;
        last = entry.generation;
        if (entry.state != State::kCurrent) continue;
        found.push_back({entry.sample_id, entry.generation, entry.bytes, entry.leases, seconds(now - entry.put_ms), {}});
      }
    }
    for (const ResidentSample& sample : found) {
      if (!visit(sample)) return;
    }
  }
}

SampleRef MemoryStore::find(const SampleId& sample_id, std::optional<std::uint64_t> generation) {
  Shared entry;
  {
    const std::lock_guard lock(mutex_);
    const auto found = current_.find(sample_id);
    if (found != current_.end()) entry = found->second;
  }
  if (entry == nullptr || (generation && entry->generation != *generation)) throw_not_found(sample_id, generation.value_or(0));
  SampleRef ref = make_ref(entry->tensors, sample_id, {.run_id = RunId("unknown")},
                           memory_uri(id_, sample_id, entry->generation), sample_id.str() + "/");
  ref.generation = entry->generation;
  ref.incarnation = incarnation_;
  return ref;
}

}  // namespace draftflow::store

namespace draftflow {

std::unique_ptr<FeatureStore> create_memory_store(const StoreId& id, const MemoryOptions& options) {
  if (options.max_hold_age_ms < 0) {
    throw InvalidArgument(fmt::format("memory store '{}': max_hold_age_ms is {}: 0 or more is allowed", printable(id.str()),
                                      options.max_hold_age_ms));
  }
  if (options.max_hold_age_ms > 0 && options.kind == StoreKind::kLedgered) {
    throw InvalidArgument(
        fmt::format("memory store '{}': max_hold_age_ms is {}, but the store is ledgered, where only the ledger "
                    "frees: make it consume_once or leave the age out",
                    printable(id.str()), options.max_hold_age_ms));
  }
  return std::make_unique<store::MemoryStore>(id, options);
}

}  // namespace draftflow
