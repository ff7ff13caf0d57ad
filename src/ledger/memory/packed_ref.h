// SPDX-License-Identifier: Apache-2.0
//
// Refs by the million: those of a run differ in little more than their ids and shapes, so that what they have in common is kept
// once, as a RefPattern, and a PackedRef takes some 150 bytes. Patterns live as long as their RefPatterns. Not thread-safe.
//
//   PackedRef packed = patterns.pack(ref);     // the ref is one that can be written as JSON
//   SampleRef same = packed.unpack();
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "draftflow/records/sample_ref.h"

namespace draftflow::memory {

// A ref without its id, numbers and extents, and without its task, URI and feature keys: these are texts around the id. Texts
// in its metadata that hold a digit are apart: of such a kind is what tells one sample from another.
struct RefPattern {
  struct Around {
    std::string name, before, after;  // name: of a feature key
    bool has_id = false;              // else all of the text is in `before`
  };
  SampleRef ref;
  std::optional<Around> task;
  Around uri;  // without the id: the PackedRef has the URI
  bool uri_ends_in_generation = false;
  std::vector<Around> keys;
  std::size_t keys_bytes = 0;      // of all names and keys of the first ref, which are as many as any's but for its id
  std::vector<std::size_t> apart;  // members of the metadata whose texts the PackedRef has
  std::vector<SharedList<FeatureSpec>> specs;             // with their extents, as far as they are kept
  std::unordered_map<std::string, std::size_t> specs_of;  // places in `specs`, by the extents
};

struct PackedRef {
  SampleId sample_id{"-"};
  const RefPattern* pattern = nullptr;
  std::uint64_t generation = 0, bytes = 0;
  std::int64_t tokens = 0;
  // The place, from 1, of the specs in the pattern, or 0 and the extents of all shapes; the texts apart; then the URI where
  // the pattern has none.
  std::string rest;

  const std::string& incarnation() const { return pattern->ref.incarnation; }
  SampleRef unpack() const;
};

class RefPatterns {
 public:
  PackedRef pack(const SampleRef& ref);
  std::size_t size() const { return patterns_.size(); }

 private:
  static constexpr std::size_t kMostShared = 4096;  // refs without anything in common are not searched for it

  std::size_t place_of_specs(RefPattern& pattern, const std::string& extents, const SampleRef& ref);

  std::deque<RefPattern> patterns_;
  std::unordered_map<std::string, RefPattern*> shared_;  // by all that is in it, as text
  std::size_t specs_ = 0;                                // lists in all patterns
};

}  // namespace draftflow::memory
