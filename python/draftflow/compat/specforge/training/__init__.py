# SPDX-License-Identifier: Apache-2.0
"""The trainer's side: ``backend``, ``strategy``, ``trainer``. torch is imported when the first of their tensors is made."""
