# SPDX-License-Identifier: Apache-2.0
"""On a CUDA device: what leaves it, what comes back, a Hugging Face model captured and a draft trained there."""

import pytest
import torch

import draftflow

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def test_cuda_tensors_are_put_and_come_back(store):
    torch.manual_seed(1)
    there = {
        "input_ids": torch.arange(7, device="cuda"),
        "hidden_state": torch.randn(1, 7, 64, device="cuda").bfloat16(),
        "aux_hidden_state": torch.randn(1, 64, 7, device="cuda").half().transpose(1, 2),  # not contiguous
    }
    ref = store.put(there, "a")
    with store.get(ref, device="cuda") as tensors:
        for name, tensor in there.items():
            assert tensors[name].device.type == "cuda"
            assert torch.equal(tensors[name], tensor)
    with store.get(ref, zero_copy=True) as tensors:
        assert torch.equal(tensors["hidden_state"], there["hidden_state"].cpu())


def test_what_a_kernel_still_computes_is_waited_for(store):
    big = torch.randn(4096, 4096, device="cuda")
    for _ in range(20):
        big = torch.tanh(big @ big)
    ref = store.put({"x": big}, "a")
    assert torch.equal(store.read(ref)["x"], big.cpu())


def test_a_hugging_face_model_is_captured_and_a_draft_trained(folder_store, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2
    )
    model = transformers.LlamaForCausalLM(config).to("cuda", torch.bfloat16).eval()
    ids = torch.randint(1, 128, (8, 12), device="cuda")
    attention = torch.ones_like(ids)
    attention[3, 9:] = 0
    ledger = draftflow.Ledger.open(str(tmp_path / "ledger.sqlite3"))
    with torch.no_grad():
        with draftflow.capture(model, layers=[1, 2, 4], store=folder_store, ledger=ledger, run_id="run") as captured:
            said = model(ids, attention_mask=attention, output_hidden_states=True)
            refs = captured.put([f"run:{i}" for i in range(8)], ids, attention_mask=attention)
    ledger.close_prompts()
    assert [ref.num_tokens for ref in refs] == [12, 12, 12, 9, 12, 12, 12, 12]
    kept = folder_store.read(refs[3])
    assert torch.equal(kept["hidden_state"], said.hidden_states[-1][3:4, :9].cpu())  # after the final norm
    outputs = torch.cat([said.hidden_states[layer + 1][3:4, :9] for layer in (1, 2, 4)], -1)
    assert torch.equal(kept["aux_hidden_state"], outputs.cpu())

    draft = torch.nn.Linear(3 * 64, 64).to("cuda")
    optimizer = torch.optim.AdamW(draft.parameters(), lr=1e-2)
    stream = draftflow.Stream(folder_store, ledger, group="draft", window=4, batch_size=2)
    losses, step = [], 0
    for batch in stream:
        batch = batch.pin_memory().to("cuda", non_blocking=True)
        mask = batch.mask().to("cuda")
        error = draft(batch["aux_hidden_state"].float()) - batch["hidden_state"].float()
        loss = error.pow(2).mean(-1)[mask].sum()
        loss.backward()
        losses.append(loss.item())
        if batch.last:
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            stream.trained(step)
    stream.checkpointed(step)
    assert step == 2 and all(torch.isfinite(torch.tensor(losses)))
    assert ledger.trained_ids("draft") == [f"run:{i}" for i in range(8)]
