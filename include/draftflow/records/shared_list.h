// SPDX-License-Identifier: Apache-2.0
//
// SharedList: a list that is a value, and whose copies share their items: a million refs of a run have few different lists of
// specs among them. Items never change; to change the list is to make another one, which costs a copy of it. Thread-safe as any
// value: copies may be used by different threads.
//
//   SharedList<FeatureSpec> specs{a, b};
//   SharedList<FeatureSpec> same = specs;                          // no item is copied
//   same.edit([](auto& items) { items[0].name = "c"; });           // `specs` is as before
#pragma once

#include <cstddef>
#include <initializer_list>
#include <memory>
#include <utility>
#include <vector>

namespace draftflow {

template <class T>
class SharedList {
 public:
  using Items = std::vector<T>;
  using value_type = T;
  using const_iterator = typename Items::const_iterator;
  using iterator = const_iterator;

  SharedList() = default;
  SharedList(Items items) : items_(std::make_shared<const Items>(std::move(items))) {}  // NOLINT(google-explicit-constructor)
  SharedList(std::initializer_list<T> items) : SharedList(Items(items)) {}

  const Items& items() const { return items_ ? *items_ : kNone; }
  operator const Items&() const { return items(); }  // NOLINT(google-explicit-constructor)
  const_iterator begin() const { return items().begin(); }
  const_iterator end() const { return items().end(); }
  std::size_t size() const { return items().size(); }
  bool empty() const { return items().empty(); }
  const T& operator[](std::size_t at) const { return items()[at]; }

  // Calls `change` on a copy of the items, an Items&, which are this list's from then on.
  template <class Change>
  void edit(Change change) {
    Items copy = items();
    change(copy);
    *this = SharedList(std::move(copy));
  }
  // A list of many is better made as Items.
  void push_back(T item) {
    edit([&](Items& all) { all.push_back(std::move(item)); });
  }

 private:
  static inline const Items kNone;

  std::shared_ptr<const Items> items_;
};

}  // namespace draftflow
