# SPDX-License-Identifier: Apache-2.0
"""Layers under the names of other systems, so that programs written for them run on draftflow."""
