"""NASA, negative-away steer attention: a negative prompt for networks called without guidance.

Nguyen et al. 2024, SNOOPI, arXiv:2412.02687. A one-step student cannot be guided, so
the negative prompt is taken away inside it, where image tokens look at text tokens:

    Z = softmax(Q K+^T / sqrt d) V+  -  a softmax(Q K-^T / sqrt d) V-

with the same projections of a prompt (+) and a negative prompt (-), in one pass. a = 0 is off;
published for inference are 0.1 for SD 1.5, 0.2 for SD 2.1 and 0.5 for PixArt-alpha, and a ~ U(0, 1)
in training.

Everything travels with the call: the negative tokens stand behind the positive ones, as many of
them, and ``negative_scale`` (a number, or one a sample) beside them in diffusers' own attention
arguments. A call without it is the stock network's, so a steered network needs no undoing.

    pipeline(**negative_call(pipeline, prompts, "blurry", scale=0.2), num_inference_steps=1)

In training, ``steer(network)`` once, then ``generator(x_t, t, with_negative(cond, negative, a))``.
"""

from .calls import negative_call as negative_call
from .conditions import attention_arguments as attention_arguments
from .conditions import with_negative as with_negative
from .cross import NegativeCrossAttention as NegativeCrossAttention
from .flux import NegativeFluxAttention as NegativeFluxAttention
from .joint import NegativeJointAttention as NegativeJointAttention
from .networks import is_steered as is_steered
from .networks import restore as restore
from .networks import steer as steer
