// SPDX-License-Identifier: Apache-2.0
//
// RunConfig: what `draftflow run FILE.yaml` reads. Paths in the file are relative to the file. Every key is checked: an
// unknown one, a wrong type or a value out of range is InvalidArgument naming the file, the line and what is allowed.
// Plain value; but its fields point into it, so they are made anew where they are used.
//
//   RunConfig config = load_run_config("examples/demo.yaml");
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <string_view>

#include "cli/fields.h"

namespace draftflow::cli {

struct RunConfig {
  std::string run = "run";
  std::filesystem::path target, tokenizer, prompts, held_out, out;
  std::string ledger;  // a URL of PostgreSQL; empty: a SQLite file in the run's folder
  int restarts = 3;    // of a process that was killed or met a passing failure, one after the other without progress
  int workers = 1;
  CaptureOptions capture;
  TrainOptions train;  // ahead_samples is set from the capture section
  EvalOptions eval;
};

RunConfig load_run_config(const std::filesystem::path& file);
RunConfig parse_run_config(const std::string& text, const std::filesystem::path& file);

// Checks of several fields together: batch and window, watermarks, files that must be there, and that training can make
// progress under the high watermark (flow/backpressure.h) as far as the target's config.json tells a sample's size.
void check_run_config(const RunConfig& config);

// The tensor bytes of a sample of `tokens` tokens; 0 if the target's config.json does not tell.
std::uint64_t sample_bytes(const RunConfig& config, std::int64_t tokens);

// Every key with its value, "train.window" -> "16": what makes two configurations equal.
std::map<std::string, std::string> flatten(const RunConfig& config);
// The same as YAML that load_run_config reads.
std::string to_yaml(const RunConfig& config);

// "" if equal, else "train.window is 16 there and 8 here; ...". `out` does not count: a run's folder may be moved.
std::string differences(const RunConfig& there, const RunConfig& here);

}  // namespace draftflow::cli
