"""Any rule of the subject as an optimiser of Keras."""

from dataclasses import asdict, replace

import keras

from dlopt_helpers._require import refuse
from dlopt_helpers.bridges.conventions import as_convention, require_rule, rule_named


def _precision(variable):
    """Return the dtype to compute in: bfloat16 counts no further than 256 steps, nor holds 0.999."""
    return keras.backend.result_type(variable.dtype, "float32")


def _number(value, dtype):
    return keras.ops.cast(keras.ops.convert_to_tensor(value), dtype)


@keras.saving.register_keras_serializable(package="dlopt_helpers")
class RuleOptimizer(keras.optimizers.Optimizer):
    r"""Run an update rule as a ``keras.optimizers.Optimizer``.

    Models compiled with it train, save and load as with any other; to load one, import this module
    first.

    Args:
      rule: an update rule, such as ``SGD(lr=0.1)``.
      convention: ``"torch"`` or ``"keras"`` for the formula of that framework
        (:func:`~dlopt_helpers.bridges.conventions.as_convention`); by default the rule's own.
      **options: those of every Keras optimiser: ``clipnorm``, ``use_ema``, ... ``learning_rate`` takes
        a schedule and then replaces the rule's ``lr``.

    Raises:
      ValueError: if ``weight_decay`` is among the options; it is a field of the rule.

    Example:
      >>> from dlopt_helpers.sgd import SGD
      >>> model = keras.Sequential([keras.Input([3]), keras.layers.Dense(1)])
      >>> model.compile(RuleOptimizer(SGD(lr=0.1, momentum=0.9), convention="keras"), loss="mse")

    Note:
      Keras keeps the learning rate in float32, also for float64 weights. State and arithmetic are of
      float32 for weights of less. Step counters are of float32 too, and there :math:`1 - 0.999^t` is off
      by 1e-5 of itself, as in Keras's own Adam: in convention ``"torch"``, 200 steps at a rate of 0.01
      end 7e-6 from ``torch.optim.Adam``, which corrects in float64.
    """

    def __init__(self, rule, convention=None, **options):
        require_rule(rule)
        if not hasattr(rule, "lr"):
            refuse("rule", rule, "a rule with a field lr")
        rule = rule if convention is None else as_convention(rule, convention)
        if options.pop("weight_decay", None) is not None:
            name = type(rule).__name__
            where = f"{name}(..., weight_decay=...)"
            raise ValueError(f"weight_decay is a field of the rule: {where}; it must not be in options")
        try:
            super().__init__(**{"learning_rate": float(rule.lr), **options})
        except ValueError as error:
            raise ValueError(f"options must be those of a Keras optimiser: {error}") from None
        self.rule = rule

    def build(self, variables):
        """Make a variable for each entry of the rule's state."""
        if self.built:
            return
        super().build(variables)
        self._slots = [self._slots_for(v) for v in variables]

    def _slots_for(self, variable):
        def state():
            return self.rule.init(_number(variable, _precision(variable)))

        def slot(name, value):
            def start(shape, dtype=None):  # Keras calls it outside the graph that a first step may be in
                return keras.ops.cast(state()[name], dtype)

            label = f"{getattr(variable, 'path', variable.name)}_{name}".replace("/", "_").replace(":", "_")
            return self.add_variable(getattr(value, "shape", ()), start, _precision(variable), name=label)

        return {name: slot(name, value) for name, value in state().items()}

    def update_step(self, gradient, variable, learning_rate):
        """Move one variable and its slots; Keras calls this."""
        precision = _precision(variable)
        rule = replace(self.rule, lr=_number(learning_rate, precision))
        if hasattr(rule, "weight_decay") and not self._use_weight_decay(variable):
            rule = replace(rule, weight_decay=0.0)
        slots = self._slots[self._get_variable_index(variable)]
        state = {name: _number(slot, precision) for name, slot in slots.items()}
        w, state = rule.step(_number(variable, precision), _number(gradient, precision), state)
        self.assign(variable, w)
        for name, slot in slots.items():
            self.assign(slot, state[name])

    def get_config(self):
        """Return what a saved model needs to build this optimiser again."""
        config = super().get_config()
        del config["weight_decay"]
        return {**config, "rule": type(self.rule).__name__, "fields": asdict(self.rule)}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Build the optimiser that ``get_config`` described; only rules of this package are known."""
        config = dict(config)
        config["rule"] = rule_named(config["rule"], config.pop("fields"))
        return super().from_config(config, custom_objects)
