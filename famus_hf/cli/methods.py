"""Ways of training by name (`--method`): each is what a run's flags must be for it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from famus_hf.cli.config_files import named, take_flag, with_values
from famus_hf.errors import SettingsError

ALONE = {"meta_learner": "none", "train_on_trusted": "false"}  # plain training on the noisy examples
PAIR = {"meta_learner": "none", "two_networks": "true"}
MW_NET = {"meta_lr_schedule": "constant"}  # of both papers, where the meta-net is trained by Adam


@dataclass(frozen=True)
class Method:
    """A way of training.

    Attributes:
        title: As tables, pictures and cards call it.
        about: What it does, and whose it is.
        settings: Flag → value, of what makes it; naming such a flag beside the method is refused.
        usual: Flag → value, as its authors have it; flags win.
    """

    title: str
    about: str
    settings: Mapping[str, str]
    usual: Mapping[str, str] = field(default_factory=dict)

    @property
    def takes_two_batches(self) -> bool:
        """Whether a step takes `per_device_train_batch_size` twice: labelled and unlabelled examples."""
        return self.settings.get("two_networks") == "true" and "pair_method" not in self.settings


METHODS = {
    "plain": Method("plain", "cross-entropy on the labels as they are", ALONE),
    "plain-trusted": Method(
        "plain + trusted", "likewise, with the trusted examples in the training set",
        {"meta_learner": "none", "train_on_trusted": "true"},
    ),
    "mixup": Method(
        "mixup", "mixed pairs of examples (Zhang et al., ICLR 2018)", ALONE, {"mixup_alpha": "1"},
    ),
    "gce": Method("GCE", "generalized cross-entropy (Zhang, Sabuncu, NeurIPS 2018)", {**ALONE, "base_loss": "gce"}),
    "sce": Method("SCE", "symmetric cross-entropy (Wang et al., ICCV 2019)", {**ALONE, "base_loss": "sce"}),
    "nce-rce": Method(
        "NCE + RCE", "normalized and reverse cross-entropy (Ma et al., ICML 2020)", {**ALONE, "base_loss": "nce-rce"},
    ),
    "elr": Method(
        "ELR", "early-learning regularization (Liu et al., NeurIPS 2020)", ALONE,
        {"elr_weight": "3", "belief_decay": "0.7"},
    ),
    "forward": Method(
        "forward correction", "transitions counted on what is believed of the examples, trusted ones train, too",
        {"meta_learner": "forward"}, {"transitions": "counts"},
    ),
    "f-correction": Method(
        "F-correction", "forward correction by anchors (Patrini et al., CVPR 2017)",
        {"meta_learner": "forward", "transitions": "anchors", "train_on_trusted": "false"},
    ),
    "b-correction": Method(
        "B-correction", "backward correction by anchors (Patrini et al., CVPR 2017)",
        {"meta_learner": "backward", "transitions": "anchors", "train_on_trusted": "false"},
    ),
    "m-correction": Method(
        "M-correction", "labels and own classes mixed by a mixture of losses (Arazo et al., ICML 2019)",
        {"meta_learner": "m-correction"}, {"mixup_alpha": "32"},
    ),
    "mentornet": Method(
        "MentorNet", "large losses wait (Jiang et al., ICML 2018, without a learned mentor)",
        {"meta_learner": "mentornet"},
    ),
    "mentormix": Method(
        "MentorMix", "MentorNet says who is mixed with whom, and judges again (Jiang et al., ICML 2020)",
        {"meta_learner": "mentormix"}, {"mixup_alpha": "8"},
    ),
    "d2l": Method(
        "D2L", "own classes in the place of labels once features gain dimensions (Ma et al., ICML 2018)",
        {"meta_learner": "d2l"},
    ),
    "lccn": Method(
        "LCCN", "latent classes drawn by transitions of the whole data set (Yao et al., AAAI 2019)",
        {"meta_learner": "lccn"},
    ),
    "glc": Method(
        "GLC", "gold loss correction: transitions by trusted examples (Hendrycks et al., NeurIPS 2018)",
        {"meta_learner": "forward", "transitions": "trusted", "train_on_trusted": "true"},
    ),
    "focal": Method("focal", "focal loss (Lin et al., ICCV 2017)", {**ALONE, "base_loss": "focal"}),
    "class-balanced": Method(
        "class-balanced", "weights by effective numbers of examples (Cui et al., CVPR 2019)",
        {**ALONE, "base_loss": "class-balanced"},
    ),
    "cb-focal": Method(
        "CB focal", "likewise, on the focal loss (Cui et al., CVPR 2019)", {**ALONE, "base_loss": "cb-focal"},
    ),
    "ldam-drw": Method(
        "LDAM-DRW", "margins by class sizes, classes weighed late (Cao et al., NeurIPS 2019)",
        {**ALONE, "base_loss": "ldam"},
    ),
    "balanced-softmax": Method(
        "balanced softmax", "logits adjusted by class sizes (Ren et al., NeurIPS 2020; Menon et al., ICLR 2021)",
        {**ALONE, "logit_adjustment": "1"},
    ),
    "bbn": Method(
        "BBN", "two branches, of which one sees the rarer classes more often (Zhou et al., CVPR 2020)",
        {**ALONE, "bilateral_branch": "true"},
    ),
    "l2r": Method(
        "L2R", "weights afresh in each step (Ren et al., ICML 2018)", {"meta_learner": "l2r", "layer_sampler": "all"},
    ),
    "mlc": Method(
        "MLC", "a learned matrix of wrong labels (Wang et al., CVPR 2020)",
        {"meta_learner": "mlc", "layer_sampler": "all"},
    ),
    "jamal": Method(
        "class-balanced residual", "class weights and a residual of each example (Jamal et al., CVPR 2020)",
        {"meta_learner": "jamal", "layer_sampler": "all"},
    ),
    "l2b": Method(
        "L2B", "a weight for the label and one for the network's own class (Zhou et al., CVPR 2024)",
        {"meta_learner": "l2b", "layer_sampler": "all"},
    ),
    "mw-net": Method(
        "MW-Net", "a learned weight by the loss, on all layers (Shu et al., NeurIPS 2019)",
        {"meta_learner": "mw-net", "layer_sampler": "all"}, MW_NET,
    ),
    "famus": Method(
        "FaMUS", "MW-Net through a few layers that a sampler picks (Xu et al., CVPR 2021)",
        {"meta_learner": "mw-net", "layer_sampler": "learned"}, MW_NET,
    ),
    "famus-l2r": Method(
        "L2R + FaMUS", "L2R through the layers that FaMUS's sampler picks",
        {"meta_learner": "l2r", "layer_sampler": "learned"},
    ),
    "famus-mlc": Method(
        "MLC + FaMUS", "MLC through the layers that FaMUS's sampler picks",
        {"meta_learner": "mlc", "layer_sampler": "learned"},
    ),
    "famus-ldam": Method(
        "LDAM + FaMUS", "FaMUS on margins by class sizes",
        {"meta_learner": "mw-net", "layer_sampler": "learned", "base_loss": "ldam"}, MW_NET,
    ),
    "soft": Method("soft targets", "targets between label and belief", {"meta_learner": "soft"}, {"preset": "fast"}),
    "posterior": Method(
        "posterior targets", "the default: the posterior of the class is the target",
        {"meta_learner": "posterior"}, {"preset": "fast"},
    ),
    "co-teaching": Method(
        "Co-teaching", "two networks choose the examples of small losses for each other (Han et al., NeurIPS 2018)",
        {**PAIR, "pair_method": "co-teaching"},
    ),
    "jocor": Method(
        "JoCoR", "two networks learn where they agree with the label and each other (Wei et al., CVPR 2020)",
        {**PAIR, "pair_method": "jocor"},
    ),
    "decoupling": Method(
        "Decoupling", "two networks learn where they disagree (Malach, Shalev-Shwartz, NIPS 2017)",
        {**PAIR, "pair_method": "decoupling"},
    ),
    "incv": Method(
        "INCV", "Co-teaching on labels that networks predict without having seen them (Chen et al., ICML 2019)",
        {**PAIR, "pair_method": "incv"},
    ),
    "dividemix": Method("DivideMix", "two networks divide the data for each other (Li et al., ICLR 2020)", PAIR),
    "famus-two-networks": Method(
        "two networks + FaMUS", "likewise, the examples weighed by FaMUS (Xu et al., CVPR 2021)",
        {"meta_learner": "mw-net", "layer_sampler": "learned", "two_networks": "true"}, MW_NET,
    ),
}  # fmt: skip


def method_of(name: str) -> Method:
    """Return a method by name.

    Raises:
        SettingsError: There is none of this name.
    """
    if name not in METHODS:
        raise SettingsError(f"method {name!r} is unknown: choose one of {', '.join(METHODS)}")
    return METHODS[name]


def with_method(
    from_files: list[str], argv: list[str], of_methods: Collection[str], of_samplers: Collection[str]
) -> list[str]:
    """Return all flags, around them those of the method that `--method` names, if it is there.

    Args:
        from_files: Flags of a recipe and a file. A method that the command line names takes the place of all that they
            say of methods, unless they are of this method, perhaps with another layer sampler.
        argv: Flags of the command line, which win.
        of_methods: Names of flags that concern methods.
        of_samplers: Of those, names of flags that concern layer samplers.

    Raises:
        SettingsError: There is no such method, or a flag beside it says what it does.
    """
    name, beside = take_flag(argv, "--method")[0], argv
    if name is None:
        name, beside = take_flag(from_files, "--method")[0], [*from_files, *argv]
    else:
        other = _differing(method_of(name), from_files)
        obsolete = set(of_samplers) if other == {"layer_sampler"} else {"method", *of_methods} if other else set()
        from_files = _without(from_files, obsolete)
    if name is None:
        return beside
    method = method_of(name)
    twice = sorted(named(beside) & set(method.settings))
    if twice:
        flag = twice[0]
        raise SettingsError(f"--method {name} is --{flag} {method.settings[flag]}: leave --{flag} out")
    before, after = ([f"--{flag}={value}" for flag, value in each.items()] for each in (method.usual, method.settings))
    return [*before, *from_files, *argv, *after]


def _differing(method: Method, flags: list[str]) -> set[str]:
    """Return which of a method's settings flags lack, or have in another way."""
    values = {flag.removeprefix("--"): " ".join(words).lower() for flag, words in with_values(flags)}
    return {flag for flag, value in method.settings.items() if values.get(flag) != value}


def _without(flags: list[str], names: Collection[str]) -> list[str]:
    """Return flags, those with these names left out."""
    kept = [(flag, values) for flag, values in with_values(flags) if flag.removeprefix("--") not in names]
    return [word for flag, values in kept for word in (flag, *values)]
