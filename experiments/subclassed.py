"""A subclassed model with a train step of its own."""

import keras


class Consistent(keras.Model):
    """Two passes with different dropout, whose predictions are drawn together.

    After R-Drop (Wu et al. 2021, https://arxiv.org/abs/2106.14448), with the squared distance of the predictions.
    """

    def __init__(self, width, dropout, pull, units, activation, **kwargs):
        super().__init__(**kwargs)
        self.settings = {"width": width, "dropout": dropout, "pull": pull, "units": units, "activation": activation}
        self.pull = pull
        self.hidden = keras.layers.Dense(width, activation="relu")
        self.drop = keras.layers.Dropout(dropout)
        self.out = keras.layers.Dense(units, activation=activation)

    def call(self, inputs, training=False):
        """One pass."""
        return self.out(self.drop(self.hidden(inputs), training=training))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The loss of one pass and its distance to another."""
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        if training and x is not None:
            loss = loss + self.pull * keras.ops.mean(keras.ops.square(y_pred - self(x, training=True)))
        return loss

    def train_step(self, data):
        """One step on two passes."""
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True), weights)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss}

    def get_config(self):
        """What `__init__` needs, for Keras to load the model again."""
        return {**super().get_config(), **self.settings}


def build(inputs, heads, *, width: int = 32, dropout: float = 0.2, pull: float = 1.0):
    """The model; ``pull`` weighs the distance of the two passes."""
    return Consistent(width, dropout, pull, heads.only.units, heads.only.activation)
