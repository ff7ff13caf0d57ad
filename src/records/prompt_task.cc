// SPDX-License-Identifier: Apache-2.0
#include "draftflow/records/prompt_task.h"

#include "records/json_fields.h"

namespace draftflow {
namespace {
using records::Json;
constexpr std::string_view kWhat = "prompt task";
}  // namespace

std::string prompt_task_to_json(const PromptTask& task) {
  Json object = Json::object();
  object["task_id"] = task.task_id.str();
  object["run_id"] = task.run_id.str();
  object["source_id"] = task.source_id;
  object["payload"] = Json::parse(task.payload);
  object["max_length"] = task.max_length;
  object["chat_template"] = task.chat_template;
  object["loss_mask_policy"] = task.loss_mask_policy;
  object["target_model_version"] = task.target_model_version;
  object["draft_weight_version"] = records::optional_string(task.draft_weight_version);
  object["attempt"] = task.attempt;
  object["metadata"] = Json::object();
  records::add_members(object["metadata"], task.metadata);
  return object.dump();
}

PromptTask prompt_task_from_json(std::string_view text) {
  Json object = records::parse_object(kWhat, text);
  PromptTask task{.task_id = TaskId(records::take_as<std::string>(object, kWhat, "task_id")),
                  .run_id = RunId(records::take_as<std::string>(object, kWhat, "run_id"))};
  task.source_id = records::take_as<std::string>(object, kWhat, "source_id");
  task.payload = records::take(object, kWhat, "payload").dump();
  task.max_length = records::take_as<std::int64_t>(object, kWhat, "max_length");
  task.chat_template = records::take_optional_string(object, kWhat, "chat_template").value_or("");
  task.loss_mask_policy = records::take_as<std::string>(object, kWhat, "loss_mask_policy");
  task.target_model_version = records::take_as<std::string>(object, kWhat, "target_model_version");
  task.draft_weight_version = records::take_optional_string(object, kWhat, "draft_weight_version");
  task.attempt = records::take_as<int>(object, kWhat, "attempt");
  task.metadata = records::members_of(records::take(object, kWhat, "metadata"));
  return task;
}

}  // namespace draftflow
