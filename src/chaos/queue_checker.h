// SPDX-License-Identifier: Apache-2.0
//
// The promise of a queue, checked as the other groups' is (checker.h): each sample was acked once, by a lease whose consumer
// had trained on it before, or failed with a reason.
#pragma once

#include <string>
#include <vector>

#include "chaos/stage.h"
#include "chaos/tables.h"

namespace draftflow::chaos {

std::vector<std::string> check_queue(const Plan& plan, const GroupPlan& queue, Tables& tables);  // what is wrong

}  // namespace draftflow::chaos
