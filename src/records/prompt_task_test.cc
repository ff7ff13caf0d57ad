// SPDX-License-Identifier: Apache-2.0
#include "draftflow/records/prompt_task.h"

#include <gtest/gtest.h>

#include "draftflow/base/error.h"

namespace draftflow {
namespace {

TEST(PromptTask, RoundTrips) {
  PromptTask task{.task_id = TaskId("run:1"), .run_id = RunId("run")};
  task.source_id = "prompts.jsonl:1";
  task.payload = R"({"text":"Call me Ishmael."})";
  task.max_length = 256;
  task.metadata.emplace_back("book", "\"moby\"");
  const std::string text = prompt_task_to_json(task);
  EXPECT_EQ(prompt_task_to_json(prompt_task_from_json(text)), text);
}

TEST(PromptTask, NamesAMissingField) {
  EXPECT_THROW(prompt_task_from_json(R"({"task_id":"a"})"), Corrupt);
}

}  // namespace
}  // namespace draftflow
