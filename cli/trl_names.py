"""Flags of TRL and transformers that are called otherwise here, or are not there: what to write instead.

A script that has a flag of that name takes it as its own. docs/from_trl.md has the same table.
"""

COMPILED = "nothing: XLA compiles every step, and logits of all positions are never held"
NOT_HERE = "nothing: this is not here"
BY_OUTPUT = "nothing: a run is named by its --output-dir"

ANSWERS = (
    # model and data
    ("model-name-or-path model-revision", "--model: embedded, Hub id, folder, .gguf file or run directory"),
    ("model-init-kwargs trust-remote-code router-aux-loss-coef cast-lm-head-to-fp32", NOT_HERE),
    ("dataset-name dataset-config dataset-train-split datasets data-files",
     "--data hf:OWNER/NAME/CONFIG:SPLIT, or files"),
    ("dataset-test-split test-split-size", "--eval-data hf:OWNER/NAME/CONFIG:SPLIT, or files"),
    ("dataset-text-field", '--data "{source: FILE, columns: {text: THEIRS}}"'),
    ("dataset-streaming streaming shuffle-dataset train-sampling-strategy remove-unused-columns label-names "
     "length-column-name",
     "nothing: rows are read by random access, shuffled by --seed, and sorted by length in windows"),
    ("chat-template-path eos-token pad-token",
     "nothing: template and end tokens are the model folder's; padding is no token"),
    ("completion-only-loss assistant-only-loss dataset-kwargs",
     "nothing: the loss is on completions and assistant turns, and on all of a text (docs/data.md)"),
    ("truncation-mode", "--too-long truncate, which keeps the start"),
    ("packing-strategy eval-packing padding-free", "--packing first-fit or concat-then-split"),
    ("dataset-num-proc dataloader-num-workers dataloader-prefetch-factor dataloader-persistent-workers "
     "dataloader-pin-memory dataloader-multiprocessing-context dataloader-in-order",
     "--workers: processes that read and tokenise ahead"),
    ("dataloader-drop-last", "nothing: no batch is smaller than the others; one epoch goes on into the next"),
    # how long, how large
    ("num-train-epochs", "--num-epochs (of one source), or --max-steps"),
    ("per-device-train-batch-size train-batch-size",
     "--batch-size: the rows of a step over all devices and micro-batches, theirs * devices * accumulation steps"),
    ("gradient-accumulation-steps average-tokens-across-devices",
     "--num-microbatches (online --microbatch-tokens): parts of --batch-size, which change neither loss nor gradient"),
    ("per-device-eval-batch-size eval-accumulation-steps eval-do-concat-batches eval-use-gather-object "
     "batch-eval-metrics include-for-metrics prediction-loss-only precompute-ref-batch-size",
     "nothing: what is not trained on comes in batches of --batch-size, too"),
    ("auto-find-batch-size torch-empty-cache-steps pad-to-multiple-of",
     "nothing: --num-microbatches and --remat save memory"),
    # optimiser
    ("lr-scheduler-type", "--optimizer.schedule cosine, linear, wsd or constant"),
    ("lr-scheduler-kwargs", "--optimizer.final-fraction, --optimizer.decay-fraction"),
    ("warmup-steps warmup-ratio", "--optimizer.warmup-steps, in steps"),
    ("optim optim-args optim-target-modules", "--optimizer.name adamw or muon"),
    ("weight-decay", "--optimizer.weight-decay"), ("adam-beta1", "--optimizer.b1"), ("adam-beta2", "--optimizer.b2"),
    ("adam-epsilon", "nothing: it is 1e-8"), ("max-grad-norm", "--optimizer.max-grad-norm"),
    ("label-smoothing-factor neftune-noise-alpha", NOT_HERE),
    ("disable-dropout", "nothing: --lora.dropout is the only dropout, and 0 by default"),
    # precision, memory, speed
    ("bf16 fp16 tf32 bf16-full-eval fp16-full-eval torch-dtype",
     "--dtype bfloat16 or float32; auto goes by the hardware"),
    ("gradient-checkpointing gradient-checkpointing-kwargs activation-checkpointing activation-checkpointing-kwargs "
     "activation-offloading", "--remat dots, attention, full or offload"),
    ("attn-implementation", "--attention"),
    ("torch-compile torch-compile-backend torch-compile-mode use-liger-kernel liger-kernel-config use-cache", COMPILED),
    ("load-in-8bit load-in-4bit bnb-4bit-quant-type bnb-4bit-quant-storage use-bnb-nested-quant use-rslora use-dora "
     "lora-target-parameters lora-modules-to-save lora-task-type", NOT_HERE),
    ("use-peft lora-r", "--lora.rank"), ("lora-alpha", "--lora.alpha"), ("lora-dropout", "--lora.dropout"),
    ("lora-target-modules", "--lora.targets q k v o gate up down"),
    # devices
    ("fsdp fsdp-config", "--mesh.fsdp"),
    ("deepspeed parallelism-config accelerator-config ds3-gather-for-generation",
     "--mesh.data, --mesh.fsdp, --mesh.tensor"),
    ("ddp-find-unused-parameters ddp-bucket-cap-mb ddp-broadcast-buffers ddp-static-graph ddp-backend ddp-timeout "
     "local-rank", "nothing: processes find each other, or --hosts.coordinator and its like tell them (docs/hosts.md)"),
    ("use-cpu", "nothing: JAX_PLATFORMS=cpu before the command"),
    # what is written
    ("report-to", "--trackers tensorboard wandb"), ("run-name project", BY_OUTPUT),
    ("logging-steps logging-strategy logging-first-step logging-nan-inf-filter include-num-input-tokens-seen "
     "skip-memory-metrics log-on-each-node log-level log-level-replica disable-tqdm",
     "nothing: metrics.jsonl has a line for every step"),
    ("eval-steps eval-strategy", "--eval-every"),
    ("eval-on-start eval-delay", "nothing: the first evaluation is before the first step, the last one after the last"),
    ("save-steps save-strategy", "--save-every"),
    ("save-total-limit save-only-model save-on-each-node enable-jit-checkpoint",
     "nothing: the newest two checkpoints are kept, and saved at SIGTERM"),
    ("load-best-model-at-end metric-for-best-model greater-is-better",
     "--keep-best, by eval loss; --model RUN@best opens it"),
    ("resume-from-checkpoint ignore-data-skip restore-callback-states-from-checkpoint",
     "nothing: the same command goes on, bit for bit; --restart begins anew"),
    ("overwrite-output-dir", "--restart"), ("data-seed full-determinism", "--seed"),
    ("push-to-hub hub-model-id hub-token hub-private-repo hub-strategy hub-always-push hub-revision "
     "log-completions-hub-repo", "nothing: scripts.export writes the folder to upload"),
    ("do-train do-eval do-predict", "nothing: --data is trained on, --eval-data evaluated"),
    # pairs, labels, reward models
    ("loss-type loss-weights",
     '--loss "sigmoid=1.0,sft=0.1" (scripts.dpo), --objective, or --loss-aggregation (online)'),
    ("f-divergence-type", "--divergence"), ("f-alpha-divergence-coef", "--alpha"), ("use-weighting", "--wpo"),
    ("discopop-tau", "nothing: it is 0.05"), ("precompute-ref-log-probs", "--keep-reference"),
    ("sync-ref-model ref-model-sync-steps", "--sync.every (scripts.dpo)"),
    ("ref-model-mixup-alpha", "--sync.alpha (scripts.dpo)"), ("ref-model", "--reference"),
    ("center-rewards-coefficient", "--centering (scripts.reward)"),
    # online
    ("num-generations", "--group-size"), ("num-generations-eval", "--rollouts.num-eval-samples"),
    ("max-completion-length response-length", "--max-new-tokens"),
    ("max-prompt-length", "--too-long: a prompt may have what --max-new-tokens leaves of the context"),
    ("reward-funcs reward-weights reward-model-name-or-path", '--rewards "math=1.0,my_rewards:short=0.2,model:PATH"'),
    ("epsilon cliprange", "--epsilon-low, --epsilon-high"), ("delta", "--algorithm.delta"), ("kl-coef", "--beta"),
    ("scale-rewards normalize-advantages", "--algorithm.advantages group, mean, batch, leave_one_out, ..."),
    ("num-mini-batches steps-per-generation generation-batch-size", "--num-minibatches"),
    ("num-ppo-epochs", "--num-iterations"), ("cliprange-value", "--critic.epsilon (scripts.ppo)"),
    ("mask-truncated-completions", "--algorithm.mask-truncated"), ("entropy-coef", "--algorithm.entropy-coefficient"),
    ("use-bias-correction-kl", "--algorithm.kl-weighted"),
    ("top-k", "--sampling.top-k"), ("top-p", "--sampling.top-p"), ("min-p", "--sampling.min-p"),
    ("repetition-penalty", "--sampling.repetition-penalty"), ("generation-kwargs", "--sampling.top-p and its like"),
    ("vllm-importance-sampling-correction vllm-importance-sampling-mode", "--importance-sampling-correction"),
    ("vllm-importance-sampling-cap vllm-importance-sampling-clip-max", "--importance-sampling-cap"),
    ("vllm-importance-sampling-clip-min", "--importance-sampling-floor"),
    ("use-vllm vllm-mode vllm-model-impl vllm-enable-sleep-mode vllm-server-base-url vllm-server-host vllm-server-port "
     "vllm-server-timeout vllm-group-port vllm-gpu-memory-utilization vllm-max-model-length vllm-tensor-parallel-size "
     "use-transformers-paged use-transformers-continuous-batching transformers-continuous-batching-config "
     "cache-implementation", "nothing: the engine is part of the run; --rollouts.num-slots, --sampling.mesh.tensor"),
    ("log-completions num-completions-to-print log-unique-prompts log-multimodal", "--rollouts.log-completions-every"),
    ("max-tool-calling-iterations", "--environment.max-turns"),
    ("vllm-structured-outputs-regex top-entropy-quantile use-adaptive-entropy entropy-coef-min entropy-coef-max "
     "entropy-coef-delta entropy-target off-policy-mask-threshold multi-objective-aggregation reward-clip-range "
     "sapo-temperature-neg sapo-temperature-pos vespo-k-pos vespo-k-neg vespo-lambda-pos vespo-lambda-neg", NOT_HERE),
)

TRL = {name: answer for names, answer in ANSWERS for name in names.split()}
