"""Every key, with its unit, constraint or source. Other configs start from this one and override."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    # contrastive: pairs find each other in a batch. lm: the next token of their texts, the stage before it (cpt_jax/data/documents.py tells
    # which texts); `loss`, data.negatives and data.max_tokens_* then have no part, and texts are cut at data.row_length.
    c.objective = 'contrastive'
    c.seed = 0  # of the initial parameters, the order of the pairs and the tokenizer
    # A run's directory, or run@step: start from its parameters (the temperature too), with its tokenizer. Or a run of objective lm, or a
    # directory with config.json, *.safetensors and tokenizer.json, or an adapter of PEFT for such a one: start from that model, whose
    # architecture takes the place of `model`'s.
    c.init_from = ''

    c.tokenizer = ConfigDict()
    c.tokenizer.path = ''  # a sentencepiece model, a tokenizer.json, or a directory with either; '': train one on the sources
    c.tokenizer.vocab_size = 50_261  # ids, the four delimiters included; only for training one (GPT-2 has 50,257)
    c.tokenizer.model_type = 'bpe'  # bpe or unigram
    c.tokenizer.normalization = 'identity'  # a sentencepiece rule; nmt_nfkc_cf folds case and white space
    c.tokenizer.whitespace = 'prefix'  # prefix: on the first piece of a word. drop: no part of the ids, so that a word is the same anywhere
    # own: x stands in [ ] and y in { }, as in the paper. shared: y in { ]; an export is then one directory for both sides, and not two.
    c.tokenizer.closing = 'own'
    c.tokenizer.characters = 100_000_000  # of the sources' texts that it is trained on

    c.prompt = ConfigDict()
    # Words that texts stand in instead of delimiters, for a run from a language model (init_from): 'This sentence : "{text}" means in one
    # word:"' is PromptEOL's. A text's vector is the state at the last token. '': delimiters.
    c.prompt.template = ''
    c.prompt.text_tokens = 0  # ids of a text, cut before it stands in the template (PromptEOL: 32); 0: as data.max_tokens_x allows

    c.data = ConfigDict()
    # name -> kind (python_source, jsonl, csv, tfds, text), weight (its share of the batches; a batch has pairs of one source), and the
    # keyword arguments of that kind's class in cpt_jax/data/.
    c.data.sources = {'python': {'kind': 'python_source', 'weight': 1.0}}
    c.data.max_tokens_x = 256  # ids, the two delimiters or the template included; longer texts are cut
    c.data.max_tokens_y = 256  # as max_tokens_x
    c.data.negatives = 0  # hard negatives of each pair that take part, the first ones
    c.data.row_length = 512  # columns of a packed row: at least the longest text; with objective lm, its most tokens
    c.data.packed = True  # several texts share a row; False: each has a row of its own, which costs padding
    c.data.rows = 0  # rows a device and chunk; 0: measured, so that fewer than 1 pair in 1,000 does not fit
    c.data.row_choices = 4  # row counts at most, measured: a batch takes the least that holds it. Each is compiled; one process alone
    c.data.threads = 2  # that read, tokenise and pack
    c.data.prefetch = 8  # batches made ahead

    c.model = ConfigDict()
    c.model.width = 1024  # of the residual stream; multiples of 128 fill a TPU's matrix unit
    c.model.layers = 24  # attention and feed-forward, one after the other
    c.model.heads = 16  # query heads; the mesh's tensor axis divides them
    c.model.kv_heads = 0  # key and value heads; 0: as many as heads (each serves heads / kv_heads of them)
    c.model.head_width = 0  # 0: width / heads
    c.model.hidden = 0  # of the feed-forward part; 0: 4 x width for gelu, 8/3 x width for swiglu
    c.model.max_length = 2048  # positions (GPT-3: 2048)
    c.model.positions = 'learned'  # learned or rotary
    c.model.norm = 'layernorm'  # layernorm or rmsnorm
    c.model.norm_epsilon = 1e-5  # added to the variance (GPT-2: 1e-5)
    c.model.activation = 'gelu'  # gelu or swiglu
    c.model.bias = True  # in every projection
    c.model.causal = True  # the paper starts from GPT; False: every token sees its whole text
    c.model.init = 'gpt2'  # gpt2, or passthrough for training from scratch (cpt_jax/model/initializers.py says why)
    c.model.dropout = 0.0  # share of units set to zero, in training, after the embeddings and in both halves of each layer
    c.model.remat = 'full'  # what the backward pass computes again: none, dots or full
    c.model.attention = 'auto'  # masked: all scores of a row at once; blocks: a few queries at a time. splash, cudnn: kernels (TPU, GPU)
    c.model.dtype = 'auto'  # of activations; auto: bfloat16 on TPU and GPU, float32 on CPU. Parameters are float32
    c.model.layer_loop = 'auto'  # scan or unroll; auto: unroll on CPU

    c.lora = ConfigDict()
    c.lora.rank = 0  # of matrices trained beside those of init_from, which stay (arXiv 2106.09685; PromptEOL: 64); 0: all is trained
    c.lora.alpha = 16.0  # what they add is scaled by alpha / rank (PromptEOL: 16)
    c.lora.dropout = 0.05  # share of a matrix's inputs that its adapter does not see, in training (PromptEOL: 0.05)
    c.lora.targets = ('query', 'key', 'value', 'out', 'up', 'gate', 'down')  # gate: where the model has one
    c.lora.base = 'float32'  # of what is frozen: float32, bfloat16, or the layers' matrices as int8 or nf4 (PromptEOL: nf4)

    c.mesh = ConfigDict()
    c.mesh.data = -1  # copies of the model; -1: all devices that are left
    c.mesh.fsdp = 1  # as data, with parameters and optimizer state split over it
    c.mesh.tensor = 1  # devices that share one layer's heads and hidden units

    c.loss = ConfigDict()
    c.loss.form = 'dense'  # dense: one gather, one matrix product. chunked: for batches whose similarities do not fit at once
    c.loss.chunks = 8  # of the chunked form: memory for similarities falls by so much, and a third more work is done
    c.loss.initial_temperature = 0.07  # CLIP's; the cpt paper trains it from a value it does not state
    c.loss.train_temperature = True  # False: it stays as it is (SimCSE, PromptEOL: 0.05)
    c.loss.temperature_per_source = False  # True: one for each of data.sources
    c.loss.symmetric = True  # both directions (cpt); False: x finds y alone
    c.loss.dimensions = ()  # Matryoshka: numbers of units whose losses are averaged, such as (64, 256, 1024); (): all units alone

    c.optimizer = ConfigDict()
    c.optimizer.peak_lr = 1e-4  # of AdamW, after the warm-up
    c.optimizer.warmup_steps = 1000  # from 0 to peak_lr, less than train.steps
    c.optimizer.decay = 'cosine'  # to final_share of peak_lr: cosine, or linear (transformers' default)
    c.optimizer.final_share = 0.1  # of peak_lr, at the last step
    c.optimizer.weight_decay = 0.1  # of matrices (cpt_jax/train/optimizer.py lists them)
    c.optimizer.b1 = 0.9  # decay of the first moment
    c.optimizer.b2 = 0.98  # decay of the second moment (CLIP: 0.98)
    c.optimizer.epsilon = 1e-8  # added to the root of the second moment
    c.optimizer.clip_norm = 1.0  # of the whole gradient

    c.train = ConfigDict()
    c.train.steps = 10_000  # batches; the learning rate ends there
    c.train.batch_pairs = 12_288  # over all devices; each is a negative of every other. With objective lm: texts
    c.train.encode_chunks = 1  # encode the batch in so many parts, exactly; saves activation memory, costs a second forward pass
    c.train.log_every = 10  # steps between rows of metrics.jsonl

    c.evaluation = ConfigDict()
    c.evaluation.every_steps = 500  # held-out retrieval, or bits per byte; 0: never
    c.evaluation.pairs = 1000  # held-out pairs, each y a candidate for every x; or texts

    c.checkpoint = ConfigDict()
    c.checkpoint.every_steps = 500  # a save at each multiple, at the end and at SIGTERM
    c.checkpoint.keep_latest = 2  # for going on
    c.checkpoint.keep_every = 5000  # multiples of it stay for good; 0: none does
    return c
