"""All config keys, with unit, constraint or source. The other configs start from this one.

Where a comment lists values as "a | b", the key takes one of them. Keys below "Advanced" are set by
no other config here.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    c = ConfigDict()
    # contrastive: each text must find its pair within the batch.
    # lm: next-token prediction on the texts of the pairs, the stage before contrastive training
    # (cpt_jax/data/sources/documents.py). Ignores `loss`, data.negatives and data.max_tokens_*;
    # data.row_length is the maximum text length.
    c.objective = 'contrastive'
    # Random seed of the initial parameters, the order of the pairs and the tokenizer's training.
    c.seed = 0
    # Model to start from; '' starts from random weights. One of:
    # - a run, `RUN`, `RUN@STEP`, `RUN@best` or `RUN@best:TASK`: loads its parameters (with the
    #   temperature) and its tokenizer; if its objective is lm, or if it inherited its architecture
    #   itself, also its architecture, which replaces the `model` section;
    # - a pretrained model's directory (config.json, *.safetensors, tokenizer.json), a GGUF file, or
    #   a PEFT adapter's directory, local or in a bucket (gs://...): loads parameters, tokenizer and
    #   architecture.
    c.init_from = ''

    c.tokenizer = ConfigDict()
    # A sentencepiece model, a tokenizer.json, or a directory with either; '' trains a tokenizer on
    # the texts of data.sources.
    c.tokenizer.path = ''
    # Number of ids, including the four delimiters, if a tokenizer is trained (GPT-2: 50,257).
    c.tokenizer.vocab_size = 50_261
    # Normalization rule of sentencepiece: identity | nfkc | nmt_nfkc | nfkc_cf | nmt_nfkc_cf. The
    # rules with _cf fold case.
    c.tokenizer.normalization = 'identity'
    # prefix: a space is part of the first piece of the next word.
    # drop: spaces have no ids, so a word has the same ids everywhere.
    c.tokenizer.whitespace = 'prefix'
    # What is put around texts. paper: the four delimiters of the cpt paper. none: the special
    # tokens and prompts of the embedding model in init_from. auto: none for an embedding model,
    # else paper. The run stores what auto means.
    c.tokenizer.delimiters = 'auto'
    # The closing delimiters; no effect with delimiters='none'.
    # own: x is enclosed in [ ] and y in { }, as in the paper.
    # shared: y is enclosed in { ]. An export is then one directory for both sides instead of two.
    # same: y is enclosed in [ ] as x is, for comparison (docs/experiments.md).
    c.tokenizer.closing = 'own'
    c.tokenizer.characters = 100_000_000  # maximum number of characters to train a tokenizer on
    # Advanced.
    c.tokenizer.model_type = 'bpe'  # bpe | unigram

    c.prompt = ConfigDict()
    # Template with {text}, used instead of delimiters; '' uses delimiters. The embedding is the
    # state of the template's last token. Needs a language model in init_from. PromptEOL:
    # 'This sentence : "{text}" means in one word:"'.
    c.prompt.template = ''
    # Maximum number of tokens of a text in the template (PromptEOL: 32); 0: only data.max_tokens_x
    # and data.max_tokens_y limit it.
    c.prompt.text_tokens = 0
    # What a text in the template begins with. tokenizer: the special tokens that the tokenizer of
    # the model in init_from itself puts before texts. always: the model's BOS, if there are none.
    # auto: tokenizer, or what the run in init_from has. The run stores what auto means.
    c.prompt.begin_token = 'auto'

    c.data = ConfigDict()
    # Name of each source -> its keys: kind (python_source | jsonl | csv | tfds | text), weight (its
    # fraction of the batches, relative to the other sources; a batch comes from one source), and
    # the arguments of the kind's class in cpt_jax/data/sources/. The flag
    # --config.data.sources.NAME.KEY also sets arguments that are not listed in the config.
    # Optional keys of a source:
    # - epochs: how often it is read in the whole run. All sources have it, or none; it replaces
    #   weight and train.steps.
    # - infonce, terms: weights of its losses, instead of loss.infonce and loss.terms.
    # - in_batch: False: an x is compared with y and the pair's own hard negatives alone.
    # - direction: xy | yx | both, instead of loss.symmetric; with in_batch=False only xy.
    # - temperature: its constant temperature, which is not trained.
    # - prompt_x, prompt_y: prompts of its texts, as in data.prompts.
    c.data.sources = {'python': {'kind': 'python_source', 'weight': 1.0}}
    # Maximum number of tokens of an x, including the two delimiters or the template; longer texts
    # are truncated. 0: the length of 99 % of a sample of the data, at most what the model reads.
    c.data.max_tokens_x = 256
    c.data.max_tokens_y = 256  # as max_tokens_x, for y and hard negatives
    # Prompts put before x and y (and hard negatives), with delimiters='none'; None: those of the
    # model in init_from.
    c.data.prompts = ConfigDict({side: config_dict.placeholder(str) for side in ('x', 'y')})
    # Which texts are equal. Pairs with an equal x or y give each other no negatives, and pairs with
    # equal x are held out together.
    # normalized: texts with the same words (Unicode NFKC; case counts if the tokenizer keeps it;
    # white space does not), or with the same tokens once truncated. An x can equal a y.
    # stripped: texts that differ at most in white space at their ends. An x never equals a y.
    # auto: normalized. A run that began before this key existed goes on with stripped.
    c.data.equal_texts = 'auto'
    c.data.negatives = 0  # number of hard negatives per pair; uses the first ones of each pair
    # Tokens of a packed row, at least max_tokens_x and max_tokens_y; 0: the longer of the two. With
    # objective lm, the maximum text length.
    c.data.row_length = 512
    # True: a row contains several texts. False: a row contains one text, which costs padding.
    c.data.packed = True
    # Rows per device and chunk; 0: estimated from a sample of the data, such that fewer than 1 in
    # 1,000 pairs do not fit.
    c.data.rows = 0
    # Maximum number of different row counts, estimated too. A batch uses the smallest one that fits
    # it, and each one is a compiled program. One that would save less than 1 % is not used.
    c.data.row_choices = 4
    # Advanced.
    c.data.threads = 2  # threads that read, tokenize and pack
    c.data.prefetch = 8  # number of batches prepared in advance
    # Whether to read all data files in full at each start to find out whether they changed. False:
    # compares sizes, times, inodes and 16 blocks of each file.
    c.data.verify = False
    # MiB of host memory, per process, for the tokens of pairs that were read; 0: none are kept.
    c.data.token_cache_mib = 1024

    c.model = ConfigDict()
    # Dimension of the residual stream, a multiple of mesh.fsdp; multiples of 128 fill a TPU's MXU.
    c.model.width = 1024
    c.model.layers = 24  # number of layers, each with attention and a feed-forward part
    c.model.heads = 16  # number of query heads, a multiple of mesh.tensor
    # Number of key and value heads, a divisor of heads and a multiple of mesh.tensor; 0: heads.
    c.model.kv_heads = 0
    # Feed-forward dimension, a multiple of mesh.tensor; 0: 4 x width, or 8/3 x width for the gated
    # activations (*glu).
    c.model.hidden = 0
    c.model.max_length = 2048  # maximum number of tokens of a text (GPT-3: 2048)
    c.model.positions = 'learned'  # learned | rotary
    c.model.norm = 'layernorm'  # layernorm | rmsnorm
    c.model.norm_epsilon = 1e-5  # added to the variance (GPT-2: 1e-5)
    c.model.activation = 'gelu'  # gelu | gelu_exact | relu | swiglu | geglu | geglu_exact
    c.model.bias = True  # whether the projections have biases
    # True: a token attends to earlier tokens only, as in GPT, from which the paper starts. False: a
    # token attends to the whole text.
    c.model.causal = True
    # Initialization for training from scratch: gpt2 | passthrough (cpt_jax/model/initializers.py).
    c.model.init = 'gpt2'
    # How the states of a text become its vector. eos: state at the closing delimiter (without
    # delimiters, at the last token). first: state at the first token. mean: mean over tokens. auto:
    # the pooling of the embedding model in init_from, else eos. The run stores what auto means.
    c.model.pooling = 'auto'
    # Keeps the Dense modules of the embedding model in init_from as they are.
    c.model.freeze_dense = False
    # Dropout rate in [0, 1), after the embeddings and in both halves of each layer.
    c.model.dropout = 0.0
    # Activations that the backward pass recomputes: none | dots (all but matrix products) | full.
    c.model.remat = 'full'
    # masked: all attention logits of a row at once | blocks: a block of queries at a time | splash:
    # a TPU kernel | cudnn: a GPU kernel | auto: splash on TPU, cudnn or masked on GPU, blocks on
    # CPU.
    c.model.attention = 'auto'
    # Dtype of activations: bfloat16 | float32 | auto: bfloat16 on TPU and GPU, float32 on CPU. The
    # parameters are float32.
    c.model.dtype = 'auto'
    # Advanced.
    c.model.head_width = 0  # dimension of a head; 0: width / heads
    # Dtype in which gradients of matrices are added up over devices: compute: that of activations |
    # float32: twice the bytes, for many hundred devices (docs/large-batches.md).
    c.model.gradient_sums = 'compute'
    # Loop over the layers: scan | unroll | auto: unroll on CPU, scan elsewhere.
    c.model.layer_loop = 'auto'

    c.lora = ConfigDict()
    # Rank of the adapters of init_from's frozen matrices (arXiv 2106.09685; PromptEOL: 64); 0: no
    # adapters, all parameters are trained.
    c.lora.rank = 0
    c.lora.alpha = 16.0  # the output of an adapter is scaled by alpha / rank (PromptEOL: 16)
    # Dropout rate in [0, 1) on the input of an adapter (PromptEOL: 0.05).
    c.lora.dropout = 0.05
    # Storage format of the frozen model: float32 | bfloat16 | int8 | nf4 (PromptEOL: nf4). int8 and
    # nf4 apply to the matrices of its layers.
    c.lora.base = 'float32'
    # Advanced. Matrices with adapters; gate is used only if the model has one.
    c.lora.targets = ('query', 'key', 'value', 'out', 'up', 'gate', 'down')

    # The product of the three sizes is the number of devices. At most one size is -1: all devices
    # that the other two leave.
    c.mesh = ConfigDict()
    c.mesh.data = -1  # data parallelism, with copies of the parameters
    c.mesh.fsdp = 1  # data parallelism, with parameters and optimizer state sharded
    c.mesh.tensor = 1  # tensor parallelism: heads, feed-forward dimension and vocabulary sharded

    c.loss = ConfigDict()
    # dense: one gather and one matrix product. chunked: for batches whose similarities do not fit
    # in memory.
    c.loss.form = 'dense'
    # Number of chunks of form chunked: divides the memory of the similarities; the loss costs a
    # third more compute.
    c.loss.chunks = 8
    # Initial temperature, from 0.01 to 100. The value is CLIP's; the cpt paper does not state one.
    c.loss.initial_temperature = 0.07
    c.loss.train_temperature = True  # False: constant temperature (SimCSE, PromptEOL: 0.05)
    c.loss.temperature_per_source = False  # True: one temperature for each of data.sources
    # True: mean of the losses x -> y and y -> x (cpt). False: x -> y only.
    c.loss.symmetric = True
    # Matryoshka (arXiv 2205.13147): numbers of leading embedding dimensions whose losses are
    # averaged, for example (64, 256, 1024); (): only the full embedding.
    c.loss.dimensions = ()
    # Weight of InfoNCE; 0: only the terms are trained on.
    c.loss.infonce = 1.0
    # (name, weight) of loss terms to add, from cpt_jax/loss/terms.py: (('uniformity', 0.1),).
    # uniformity: vectors spread over the sphere; needs the memory of form dense, also with chunked.
    # kl, margin_mse: scores of y and its hard negatives (data.sources.NAME.scores).
    # cosent: grades of pairs (data.sources.NAME.score).
    # teacher_cosine, teacher_mse: vectors of a teacher (loss.teacher); mse learns a linear map.
    c.loss.terms = ()
    # Directories of launch/embed.py, separated by commas, with a teacher's vectors of all texts.
    c.loss.teacher = ''
    c.loss.teacher_temperature = 1.0  # a teacher's scores are divided by it
    # False negatives: a candidate whose cosine with an x (or y) is above that of its pair by more
    # than this margin is no negative of it (Qwen3-Embedding: 0.1); None: only equal texts are none.
    c.loss.mask_margin = config_dict.placeholder(float)
    c.loss.mask_relative = False  # True: mask_margin is a fraction of the pair's absolute cosine
    # Directories of launch/embed.py, separated by commas, with a guide's vectors of all texts (x, y
    # and hard negatives): its cosines decide about mask_margin. '': the model's own cosines.
    c.loss.guide = ''

    c.optimizer = ConfigDict()
    c.optimizer.peak_lr = 1e-4  # learning rate of AdamW after the warm-up
    # Steps in which the learning rate rises from 0 to peak_lr; less than train.steps.
    c.optimizer.warmup_steps = 1000
    # Warm-up as a fraction of train.steps, which replaces warmup_steps; 0: off.
    c.optimizer.warmup_share = 0.0
    # Decay of the learning rate after the warm-up: cosine | linear (the default of transformers).
    c.optimizer.decay = 'cosine'
    c.optimizer.final_share = 0.1  # learning rate at the last step, as a fraction of peak_lr
    c.optimizer.weight_decay = 0.1  # for matrices only (cpt_jax/training/optimizer.py lists them)
    c.optimizer.b2 = 0.98  # decay rate of the second moment (CLIP: 0.98)
    c.optimizer.epsilon = 1e-8  # added to the square root of the second moment
    # Advanced.
    c.optimizer.b1 = 0.9  # decay rate of the first moment
    c.optimizer.clip_norm = 1.0  # maximum global norm of the gradient

    c.train = ConfigDict()
    c.train.steps = 10_000  # number of batches, and the end of the learning rate schedule
    # Sets train.steps to this number of times the batches that all sources have together; 0: off.
    # With one source, it is read as often.
    c.train.epochs = 0.0
    # Pairs in a batch, over all devices; each is a negative of every other. With objective lm:
    # texts.
    c.train.batch_pairs = 12_288
    # Number of chunks in which a batch is encoded (gradient caching, exact). Reduces activation
    # memory, and costs a second forward pass.
    c.train.encode_chunks = 1
    # Advanced.
    c.train.log_every = 10  # steps between rows of metrics.jsonl
    # First and last step that a profiler trace covers, as (10, 12), in WORKDIR/profile; (): none.
    c.train.profile_steps = ()
    # Options of XLA's compiler for the training step and its plan, as 'NAME=VALUE,NAME=VALUE'.
    c.train.compiler_options = ''
    # Project of Weights & Biases that gets the rows of metrics.jsonl too (needs the wandb package);
    # '': none.
    c.train.wandb = ''

    c.evaluation = ConfigDict()
    # Steps between evaluations on held-out data; 0: no evaluation. Measures retrieval; with
    # objective lm, bits per byte.
    c.evaluation.every_steps = 500
    # Maximum number of evaluations, evenly over the run, which replaces every_steps; 0: off.
    c.evaluation.times = 0
    # Number of held-out pairs; each y is a candidate for every x. With objective lm: texts.
    c.evaluation.pairs = 1000
    # Number of evaluations without a better score after which training stops early; 0: never.
    c.evaluation.patience = 0

    c.checkpoint = ConfigDict()
    # Steps between checkpoints. The last step and SIGTERM also save one.
    c.checkpoint.every_steps = 500
    # Minutes after which a checkpoint is saved too, at a multiple of train.log_every; 0: off.
    c.checkpoint.every_minutes = 0.0
    c.checkpoint.keep_latest = 2  # number of latest checkpoints to keep, to resume from
    c.checkpoint.keep_every = 5000  # keep checkpoints at multiples of this step forever; 0: none
    # Saves and keeps the checkpoint with the best held-out score, which is RUN@best.
    c.checkpoint.keep_best = False
    return c
