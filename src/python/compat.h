// SPDX-License-Identifier: Apache-2.0
//
// The calls of draftflow.compat that are made for each sample: refs there are another class's, with the same attributes.
// Called with Python's lock held. Private to this room.
#pragma once

#include "draftflow/records/sample_ref.h"
#include "python/bindings.h"

namespace draftflow::python {

// What Store.get needs of a ref of any class: the features that its feature_keys names. NotFound for a key without a spec;
// TypeError, AttributeError and KeyError for an attribute that is not as a SampleRef's.
SampleRef locator_from(py::handle ref);

}  // namespace draftflow::python
