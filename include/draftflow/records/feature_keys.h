// SPDX-License-Identifier: Apache-2.0
//
// FeatureKeys: the names of a sample's features, each with its raw key, in order. All of them are one text, since there are
// many refs and each has some; what is read are views into it, which hold until it is changed. A value; thread-safe as such.
//
//   FeatureKeys keys{{"input_ids", "run:1/input_ids"}};
//   keys.emplace_back("loss_mask", "run:1/loss_mask");
//   for (const auto& [name, key] : keys) ...
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <string>
#include <string_view>
#include <utility>

namespace draftflow {

class FeatureKeys {
 public:
  using value_type = std::pair<std::string_view, std::string_view>;  // name, key

  class const_iterator {
   public:
    using iterator_category = std::input_iterator_tag;
    using value_type = FeatureKeys::value_type;
    using difference_type = std::ptrdiff_t;
    using pointer = const value_type*;
    using reference = value_type;

    const_iterator() = default;
    value_type operator*() const;
    const_iterator& operator++();
    const_iterator operator++(int) { return std::exchange(*this, std::next(*this)); }
    bool operator==(const const_iterator&) const = default;

   private:
    friend class FeatureKeys;
    explicit const_iterator(const char* at) : at_(at) {}
    const char* at_ = nullptr;
  };
  using iterator = const_iterator;

  FeatureKeys() = default;
  FeatureKeys(std::initializer_list<value_type> all) {
    for (const auto& [name, key] : all) emplace_back(name, key);
  }

  const_iterator begin() const { return const_iterator(text_.data()); }
  const_iterator end() const { return const_iterator(text_.data() + text_.size()); }
  std::size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  value_type operator[](std::size_t at) const { return *std::next(begin(), static_cast<std::ptrdiff_t>(at)); }

  void emplace_back(std::string_view name, std::string_view key) { append(name, {key}); }
  void append(std::string_view name, std::initializer_list<std::string_view> parts_of_key);
  void reserve(std::size_t size, std::size_t bytes) { text_.reserve(size * kHeadBytes + bytes); }  // of names and keys
  void clear() { *this = {}; }

  bool operator==(const FeatureKeys&) const = default;

 private:
  static constexpr std::size_t kHeadBytes = 2 * sizeof(std::uint32_t);  // before a name and its key: how long they are

  std::string text_;
  std::size_t size_ = 0;
};

}  // namespace draftflow
