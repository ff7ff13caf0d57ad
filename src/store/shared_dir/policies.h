// SPDX-License-Identifier: Apache-2.0
//
// Policies: the access policies of a store with a secret, access/{incarnation}.{n}.json (docs/formats/shared_dir.md). The
// greatest n holds; a rotation adds the next in one step that fails if it is there, then removes those below. Named by
// incarnation, so that makers of a store who race cannot take each other's for their own. Thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "store/access.h"
#include "store/shared_dir/folder.h"

namespace draftflow::store {

class Policies {
 public:
  struct Found {
    AccessPolicy policy;
    std::uint64_t number = 0;
  };

  Policies(Folder folder, std::string incarnation) : folder_(std::move(folder)), incarnation_(std::move(incarnation)) {}

  // The one that holds, or nothing. Corrupt or InvalidArgument as AccessPolicy::from_json.
  std::optional<Found> find() const;

  // On disk when it returns. Conflict if another rotation has taken the number.
  void publish(const Folder& temporaries, const AccessPolicy& policy, std::uint64_t number) const;

  // Those that hold no more: their secrets must not open the store's keys any longer.
  void remove_below(std::uint64_t number) const;

  // For gc of the store of this incarnation: finishes a rotation that died between its two steps, and takes away what makers
  // left who died before their store was one, or lost the race for it.
  void collect() const;

 private:
  struct Name {
    std::string incarnation;
    std::uint64_t number = 0;
  };
  static std::optional<Name> parse(const std::string& file);
  std::string name_of(std::uint64_t number) const;

  Folder folder_;
  std::string incarnation_;
};

}  // namespace draftflow::store
