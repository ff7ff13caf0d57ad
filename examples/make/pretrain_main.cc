// SPDX-License-Identifier: Apache-2.0
//
// Trains the example target: draftflow-pretrain --config C --tokens T.u16 --held-out H.u16 --out DIR --steps N
#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "draftflow/base/error.h"
#include "draftflow/train/pretrain.h"

int main(int argc, char** argv) {
  draftflow::PretrainOptions options;
  CLI::App app("Train a small Llama from nothing on a flat file of token ids");
  app.add_option("--config", options.config, "config.json of the Llama")->required();
  app.add_option("--tokens", options.tokens, "training tokens, little-endian uint16")->required();
  app.add_option("--held-out", options.held_out, "held-out tokens, little-endian uint16")->required();
  app.add_option("--out", options.out, "model folder to write")->required();
  app.add_option("--steps", options.steps, "optimizer steps");
  app.add_option("--batch", options.batch, "sequences a step");
  app.add_option("--length", options.length, "tokens a sequence");
  app.add_option("--learning-rate", options.learning_rate, "peak learning rate");
  app.add_option("--threads", options.threads, "compute threads");
  app.add_option("--seed", options.seed, "seed of weights and order");
  app.add_option("--evaluate-every", options.evaluate_every, "steps between reports and saves");
  CLI11_PARSE(app, argc, argv);
  try {
    draftflow::run_pretrain(options, [](const draftflow::PretrainProgress& p) {
      fmt::print("step {}/{}  loss {:.3f}  held-out {:.3f} nats a token  {:.0f} tokens/s\n", p.step, p.steps, p.loss,
                 p.held_out_loss, p.tokens_per_second);
      std::fflush(stdout);
    });
  } catch (const draftflow::Error& error) {
    fmt::print(stderr, "draftflow-pretrain: {}: {}\n", draftflow::error_kind_name(error.kind()), error.what());
    return draftflow::exit_code(error.kind());
  }
  return 0;
}
