"""Every key, with its unit, constraint or source. Other configs start from this one and override.

Where a comment lists values ("a | b"), the key takes one of them. Keys marked as advanced come last
in their section: no config here sets them.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    # contrastive: each text finds its pair within the batch.
    # lm: next-token prediction on the texts of the pairs (cpt_jax/data/sources/documents.py), the
    # stage before contrastive training. It uses neither `loss` nor data.negatives nor
    # data.max_tokens_*, and cuts texts at data.row_length.
    c.objective = 'contrastive'
    c.seed = 0  # of the initial parameters, the order of the pairs and the tokenizer's training
    # What to start from; '' is from scratch.
    # A run's directory or run@step: its parameters (temperature included) and its tokenizer.
    # A run with objective lm, a pretrained model's directory (config.json, *.safetensors,
    # tokenizer.json) or a PEFT adapter's directory: also its architecture, which replaces `model`.
    c.init_from = ''

    c.tokenizer = ConfigDict()
    # sentencepiece model, tokenizer.json, or directory with either; '' trains one on the sources.
    c.tokenizer.path = ''
    # Ids, including the four delimiters; only for a tokenizer that is trained (GPT-2: 50,257).
    c.tokenizer.vocab_size = 50_261
    # A sentencepiece rule: identity | nfkc | nmt_nfkc | nfkc_cf | nmt_nfkc_cf; cf folds case.
    c.tokenizer.normalization = 'identity'
    # prefix: a space belongs to the first piece of the next word.
    # drop: spaces have no ids, so that a word has the same ids everywhere.
    c.tokenizer.whitespace = 'prefix'
    # own: x is enclosed in [ ] and y in { }, as in the paper.
    # shared: y is enclosed in { ]; an export is then one directory for both sides instead of two.
    c.tokenizer.closing = 'own'
    c.tokenizer.characters = 100_000_000  # characters of the sources that it is trained on
    # Advanced.
    c.tokenizer.model_type = 'bpe'  # bpe | unigram

    c.prompt = ConfigDict()
    # Text around {text}, in place of delimiters, for a run that starts from a language model
    # (init_from); '' uses delimiters. The last token's state is the text's vector. PromptEOL:
    # 'This sentence : "{text}" means in one word:"'.
    c.prompt.template = ''
    # Tokens, the limit of a text before it enters the template (PromptEOL: 32); 0: no limit but
    # data.max_tokens_x and data.max_tokens_y.
    c.prompt.text_tokens = 0

    c.data = ConfigDict()
    # name -> kind (python_source | jsonl | csv | tfds | text), weight (relative share of the
    # batches; each batch comes from one source), and the arguments of that kind's class in
    # cpt_jax/data/sources/. --config.data.sources.NAME.KEY sets those that are not listed, too.
    c.data.sources = {'python': {'kind': 'python_source', 'weight': 1.0}}
    # Tokens, including the two delimiters or the template; longer texts are cut.
    c.data.max_tokens_x = 256
    c.data.max_tokens_y = 256  # as max_tokens_x
    c.data.negatives = 0  # hard negatives used from each pair, the first ones
    # Tokens of a packed row, at least those of the longest text; with objective lm the limit of a
    # text.
    c.data.row_length = 512
    # True: several texts share a row. False: one text a row, which costs padding.
    c.data.packed = True
    # Rows per device and chunk; 0: measured, so that fewer than 1 pair in 1,000 does not fit.
    c.data.rows = 0
    # Maximum number of row counts, all measured; a batch uses the smallest that holds it. Each is a
    # compiled program. With several processes there is one.
    c.data.row_choices = 4
    # Advanced.
    c.data.threads = 2  # threads that read, tokenize and pack
    c.data.prefetch = 8  # batches prepared ahead

    c.model = ConfigDict()
    c.model.width = 1024  # dimension of the residual stream; multiples of 128 fill a TPU's MXU
    c.model.layers = 24  # each is attention and feed-forward
    c.model.heads = 16  # query heads, a multiple of mesh.tensor
    # Key and value heads, a divisor of heads; 0: as many as heads.
    c.model.kv_heads = 0
    c.model.hidden = 0  # feed-forward dimension; 0: 4 x width for gelu, 8/3 x width for swiglu
    c.model.max_length = 2048  # tokens, the number of positions (GPT-3: 2048)
    c.model.positions = 'learned'  # learned | rotary
    c.model.norm = 'layernorm'  # layernorm | rmsnorm
    c.model.norm_epsilon = 1e-5  # added to the variance (GPT-2: 1e-5)
    c.model.activation = 'gelu'  # gelu | gelu_exact | relu | swiglu | geglu | geglu_exact
    c.model.bias = True  # a bias in every projection
    c.model.causal = True  # the paper starts from GPT; False: attention to the whole text
    # gpt2 | passthrough: for training from scratch (cpt_jax/model/initializers.py says why).
    c.model.init = 'gpt2'
    # Probability in [0, 1), in training: after the embeddings and in both halves of each layer.
    c.model.dropout = 0.0
    c.model.remat = 'full'  # activations recomputed in the backward pass: none | dots | full
    # masked: all attention logits of a row at once | blocks: a few queries at a time | splash: a
    # TPU kernel | cudnn: a GPU kernel | auto.
    c.model.attention = 'auto'
    # Of activations: bfloat16 | float32 | auto: bfloat16 on TPU and GPU, float32 on CPU.
    # Parameters are float32.
    c.model.dtype = 'auto'
    # Advanced.
    c.model.head_width = 0  # dimension of a head; 0: width / heads
    c.model.layer_loop = 'auto'  # scan | unroll | auto: unroll on CPU, else scan

    c.lora = ConfigDict()
    # Rank of the adapters beside init_from's frozen matrices (arXiv 2106.09685; PromptEOL: 64); 0:
    # no adapters, all parameters are trained.
    c.lora.rank = 0
    c.lora.alpha = 16.0  # an adapter's output is scaled by alpha / rank (PromptEOL: 16)
    # Probability in [0, 1), in training, on an adapter's input (PromptEOL: 0.05).
    c.lora.dropout = 0.05
    # Storage of the frozen model: float32 | bfloat16 | its layers' matrices in int8 | nf4
    # (PromptEOL: nf4).
    c.lora.base = 'float32'
    # Advanced. Matrices that have adapters; gate only where the model has one.
    c.lora.targets = ('query', 'key', 'value', 'out', 'up', 'gate', 'down')

    # The product of the three axes is the number of devices; -1 in one of them: what is left.
    c.mesh = ConfigDict()
    c.mesh.data = -1  # copies of the model
    c.mesh.fsdp = 1  # data parallel too, with parameters and optimizer state split over the axis
    c.mesh.tensor = 1  # devices that share the heads and feed-forward dimension of a layer

    c.loss = ConfigDict()
    # dense: one gather, one matrix product | chunked: when similarities of a whole batch do not fit
    # in memory.
    c.loss.form = 'dense'
    # Chunks of the chunked form: divides the memory of similarities, costs a third more work.
    c.loss.chunks = 8
    # From 0.01 to 100. CLIP's value; the cpt paper does not state where its temperature begins.
    c.loss.initial_temperature = 0.07
    c.loss.train_temperature = True  # False: constant (SimCSE, PromptEOL: 0.05)
    c.loss.temperature_per_source = False  # True: one temperature for each of data.sources
    c.loss.symmetric = True  # mean of x -> y and y -> x (cpt); False: x -> y only
    # Matryoshka (arXiv 2205.13147): embedding dimensions whose losses are averaged, for example
    # (64, 256, 1024); (): the full dimension only.
    c.loss.dimensions = ()
    # (name, weight) of terms to add, from cpt_jax/loss/terms.py: (('uniformity', 0.1),). They hold
    # their similarities at once, also where the form is 'chunked'.
    c.loss.terms = ()

    c.optimizer = ConfigDict()
    c.optimizer.peak_lr = 1e-4  # learning rate of AdamW after the warm-up
    c.optimizer.warmup_steps = 1000  # steps from 0 to peak_lr, fewer than train.steps
    # Decay from peak_lr to final_share of it: cosine | linear (the default of transformers).
    c.optimizer.decay = 'cosine'
    c.optimizer.final_share = 0.1  # of peak_lr, reached at the last step
    c.optimizer.weight_decay = 0.1  # for matrices only (cpt_jax/training/optimizer.py lists them)
    c.optimizer.b2 = 0.98  # decay of the second moment (CLIP: 0.98)
    c.optimizer.epsilon = 1e-8  # added to the square root of the second moment
    # Advanced.
    c.optimizer.b1 = 0.9  # decay of the first moment
    c.optimizer.clip_norm = 1.0  # maximum norm of the whole gradient

    c.train = ConfigDict()
    c.train.steps = 10_000  # batches; the learning rate schedule ends there
    # Pairs in a batch over all devices, each a negative of every other. With objective lm: texts.
    c.train.batch_pairs = 12_288
    # Parts in which a batch is encoded (gradient caching, exact); saves activation memory, costs a
    # second forward pass.
    c.train.encode_chunks = 1
    # Advanced.
    c.train.log_every = 10  # steps between rows of metrics.jsonl

    c.evaluation = ConfigDict()
    c.evaluation.every_steps = 500  # steps between held-out retrieval, or bits per byte; 0: never
    c.evaluation.pairs = 1000  # held-out pairs, each y a candidate for every x; or texts

    c.checkpoint = ConfigDict()
    # Steps between checkpoints; the last step and SIGTERM save one too.
    c.checkpoint.every_steps = 500
    c.checkpoint.keep_latest = 2  # latest checkpoints kept, to continue from
    c.checkpoint.keep_every = 5000  # checkpoints at multiples of this are kept for good; 0: none
    return c
