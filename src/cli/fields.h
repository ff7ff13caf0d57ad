// SPDX-License-Identifier: Apache-2.0
//
// Fields: one list per options struct from which everything else follows, so that none of it can drift apart: the command
// line flags, the YAML keys, the arguments a supervisor gives its children, and the record of a run's configuration.
// A Field points into a struct that outlives it. Not thread-safe.
//
//   TrainOptions options;
//   Fields fields = train_fields(options);
//   set_field(find_field(fields, "learning_rate"), "3e-4");   // InvalidArgument says what is expected
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "draftflow/capture/worker.h"
#include "draftflow/train/evaluate.h"
#include "draftflow/train/trainer.h"

namespace draftflow::cli {

struct ByteSize {
  std::uint64_t* bytes;
};

struct Field {
  using Value = std::variant<std::filesystem::path*, std::string*, int*, std::int64_t*, std::uint64_t*, ByteSize, double*,
                             bool*, std::vector<int>*>;
  std::string key;  // "learning_rate"; the flag is --learning-rate
  Value value;
  std::string help;
  double minimum = 0;     // of numbers
  bool required = false;  // on the command line
  bool on = false;        // a switch that is on until it is turned off
};

using Fields = std::vector<Field>;

Fields capture_fields(CaptureOptions& options);
Fields train_fields(TrainOptions& options);
Fields eval_fields(EvalOptions& options);

std::string flag_of(const Field& field);                    // "--learning-rate"
void set_field(const Field& field, std::string_view text);  // InvalidArgument: "'x' is not a whole number of 1 or more"
std::string field_text(const Field& field);                 // the value, as set_field takes it
std::string expected_of(const Field& field);                // "a whole number of 1 or more"

Field& find_field(Fields& fields, std::string_view key);  // the key must be there: it is ours
// Only the named ones, in that order.
Fields select_fields(const Fields& fields, const std::vector<std::string>& keys);

// "--key=value" for every field that is not empty, or off as it is by default.
std::vector<std::string> to_arguments(const Fields& fields);

// "256MiB", "1.5 GiB", "4096", "10MB". InvalidArgument for anything else.
std::uint64_t parse_byte_size(std::string_view text);
std::string byte_size_text(std::uint64_t bytes);  // the shortest text that parse_byte_size reads back exactly

}  // namespace draftflow::cli
