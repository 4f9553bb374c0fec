"""Any rule of the subject as an optimiser of Keras."""

from dataclasses import asdict, replace

import keras

from dlopt_helpers.bridges.conventions import as_convention, rule_named


@keras.saving.register_keras_serializable(package="dlopt_helpers")
class RuleOptimizer(keras.optimizers.Optimizer):
    """Run an update rule as a ``keras.optimizers.Optimizer``.

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
      Keras keeps the learning rate in float32, also for float64 weights.
    """

    def __init__(self, rule, convention=None, **options):
        if options.pop("weight_decay", None) is not None:
            name = type(rule).__name__
            raise ValueError(f"weight_decay is a field of the rule: {name}(..., weight_decay=...)")
        super().__init__(**{"learning_rate": float(rule.lr), **options})
        self.rule = as_convention(rule, convention) if convention else rule

    def build(self, variables):
        """Make a variable for each entry of the rule's state."""
        if self.built:
            return
        super().build(variables)
        self._slots = [self._slots_for(v) for v in variables]

    def _slots_for(self, variable):
        def state():
            return self.rule.init(keras.ops.convert_to_tensor(variable))

        def slot(name, value):
            def start(shape, dtype=None):  # Keras calls it outside the graph that a first step may be in
                return keras.ops.cast(state()[name], dtype)

            label = f"{getattr(variable, 'path', variable.name)}_{name}".replace("/", "_").replace(":", "_")
            return self.add_variable(getattr(value, "shape", ()), start, variable.dtype, name=label)

        return {name: slot(name, value) for name, value in state().items()}

    def update_step(self, gradient, variable, learning_rate):
        """Move one variable and its slots; Keras calls this."""
        rule = replace(self.rule, lr=keras.ops.cast(learning_rate, variable.dtype))
        if hasattr(rule, "weight_decay") and not self._use_weight_decay(variable):
            rule = replace(rule, weight_decay=0.0)
        slots = self._slots[self._get_variable_index(variable)]
        gradient = keras.ops.cast(keras.ops.convert_to_tensor(gradient, sparse=False), variable.dtype)
        state = {name: keras.ops.convert_to_tensor(slot) for name, slot in slots.items()}
        w, state = rule.step(keras.ops.convert_to_tensor(variable), gradient, state)
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
