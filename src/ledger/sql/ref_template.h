// SPDX-License-Identifier: Apache-2.0
//
// Refs as short texts. The JSON of two refs of a run differs in the id and in few values: a RefTemplate is that JSON once, with
// holes for what the sample's own row says, and a packed ref the values that are others, by their place: `57="train.jsonl:2"`.
// Nothing is taken for granted: what does not come out byte for byte is not packed. Immutable; any thread. Private to this
// room.
//
//   const RefTemplate shape = RefTemplate::of(json, columns);
//   std::optional<std::string> packed = shape.pack(other_json, other_columns);   // nothing: another structure, or too much
//   std::string same = shape.unpack(*packed, other_columns);
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "draftflow/records/sample_ref.h"
#include "ledger/sql/database.h"

namespace draftflow::sql {

// What the sample's row says of its ref, as it stands in JSON.
struct RefColumns {
  explicit RefColumns(const SampleRef& ref);
  RefColumns(std::string_view sample_id, std::int64_t of_generation, std::int64_t of_bytes, std::int64_t of_tokens);

  std::string id;  // escaped, without quotes
  std::string generation, bytes, tokens;
};

class RefTemplate {
 public:
  static RefTemplate of(std::string_view json, const RefColumns& columns);
  explicit RefTemplate(std::string text);  // as a table keeps it; Corrupt if it is none

  const std::string& text() const { return text_; }
  // At most half as long as the JSON.
  std::optional<std::string> pack(std::string_view json, const RefColumns& columns) const;
  std::string unpack(std::string_view packed, const RefColumns& columns) const;  // Corrupt if it does not fit

 private:
  // A string, number, word or list (but for shapes) of the JSON: as it stands there, a text around the id, or one of the
  // columns.
  struct Value {
    std::string before;               // what lies between it and the value before
    std::string text;                 // with a mark in place of each hole
    char mark = 0;                    // of its holes; 0 if it has none
    std::vector<std::string> around;  // what lies around the id
  };
  static Value value_of(std::string before, std::string text);
  static std::size_t match(std::string_view json, std::size_t at, const Value& value, const RefColumns& columns);
  std::string text_;
  std::vector<Value> values_;
  std::string after_;
};

// The templates of a ledger, numbered from 1; 0 stands for a JSON that is kept whole. Rows are never changed, so that what was
// read once holds. Used by one thread.
class RefTemplates {
 public:
  explicit RefTemplates(Database& db) : db_(db) {}

  struct Packed {
    std::int64_t number = 0;
    std::string text;
  };
  std::size_t known() const { return known_.size(); }
  // By a template that is known here already, so that it can be done before the write turn; not by the first `tried` ones.
  std::optional<Packed> pack(const std::string& json, const RefColumns& columns, std::size_t tried = 0);
  std::string unpack(std::int64_t number, const std::string& text, const RefColumns& columns);

  // Within a write transaction, which must end after it: a template that is made is forgotten here with it, and read again from
  // the table later, if it holds.
  class Making {
   public:
    explicit Making(RefTemplates& templates) : templates_(templates) {}
    Making(const Making&) = delete;
    Making& operator=(const Making&) = delete;
    ~Making() { templates_.made_.clear(); }
    Packed pack(const std::string& json, const RefColumns& columns, std::size_t tried = 0);

   private:
    RefTemplates& templates_;
    bool read_ = false;
  };

 private:
  static constexpr std::size_t kMost = 16;         // each ref that is like none of them is tried with all
  static constexpr std::size_t kLargest = 65'536;  // bytes of JSON of a ref that is packed: every process keeps the templates

  void read_more();

  Database& db_;
  std::deque<RefTemplate> known_, made_;
  std::size_t last_ = 0;  // that fitted
};

}  // namespace draftflow::sql
