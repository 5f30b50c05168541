"""One network that learns: its parameters, and Adam's moments beside them.

The dense and the sparse branch of a learner are each one of these, at their own widths.
"""

import torch

from model.network import Network


class Branch:
    """One network with its parameters and Adam (Kingma & Ba, arXiv:1412.6980)."""

    def __init__(self, network: Network, parameters: dict[str, torch.Tensor]):
        self.network = network
        self.parameters = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
        self.optimizer = torch.optim.Adam(list(self.parameters.values()), fused=True)

    def step(self, rate: float) -> None:
        """One optimizer step on the gradients at hand, which are cleared."""
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def parts(self) -> tuple[dict[str, torch.Tensor], ...]:
        """The parameters, and Adam's two moments, each by name."""
        return self.weights(), self.moments("exp_avg"), self.moments("exp_avg_sq")

    def weights(self) -> dict[str, torch.Tensor]:
        """The parameters, without their gradients."""
        return {name: tensor.detach() for name, tensor in self.parameters.items()}

    def moments(self, key: str) -> dict[str, torch.Tensor]:
        """One of Adam's moments ("exp_avg", "exp_avg_sq") by parameter; zeros before the first step."""
        state = self.optimizer.state
        return {name: state[p][key] if p in state else torch.zeros_like(p) for name, p in self.parameters.items()}

    @property
    def steps(self) -> float:
        """Optimizer steps taken."""
        return max((float(state["step"]) for state in self.optimizer.state.values()), default=0.0)

    def restore(self, first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], steps: float) -> "Branch":
        """Set Adam's moments and step count."""
        for name, parameter in self.parameters.items():
            state = {"step": torch.tensor(steps), "exp_avg": first[name].clone(), "exp_avg_sq": second[name].clone()}
            self.optimizer.state[parameter] = state
        return self
