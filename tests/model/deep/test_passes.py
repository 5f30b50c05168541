"""The passes against the network's definition and torch's own gradients, on any shape."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from niwaki.model.deep.network import NetworkShape
from tests.support.networks import branch_of, correction, forward, inputs_of, shapes


@given(shapes(), st.integers(1, 40), st.booleans(), st.integers(0, 2**31))
@settings(max_examples=60)
def test_values_and_gradients_are_those_of_the_definition(shape, events, masked, seed):
    generator = torch.Generator().manual_seed(seed)
    branch = branch_of(shape, generator)
    units = branch.network.groups if shape.columns is not None else branch.network.units
    alive = (
        {g.name: torch.rand(g.size, generator=generator).round() for g in units} if masked else None
    )
    for _ in range(2):  # the second time in buffers that are no longer fresh
        inputs, errors_B = (
            inputs_of(shape, events, generator),
            torch.randn(events, generator=generator),
        )
        correction_B = forward(branch.passes, inputs, alive)
        gradient_BVD = branch.passes.backward(errors_B)

        parameters = {
            name: tensor.clone().requires_grad_() for name, tensor in branch.parameters.items()
        }
        vectors_BFD = inputs[0].requires_grad_()
        masks = (
            {name: m.expand(events, -1).clone().requires_grad_() for name, m in alive.items()}
            if masked
            else None
        )
        expected_B = correction(branch.network, parameters, *inputs, masks)
        (expected_B * errors_B).sum().backward()
        torch.testing.assert_close(correction_B, expected_B.detach(), rtol=1e-4, atol=1e-4)
        for name, gradient in branch.gradients.items():
            torch.testing.assert_close(gradient, parameters[name].grad, rtol=1e-4, atol=1e-4)
        if vectors_BFD.numel():
            torch.testing.assert_close(
                gradient_BVD[:, : shape.fields], vectors_BFD.grad, rtol=1e-4, atol=1e-4
            )
        for name, (mean_U, square_U) in branch.passes.mask_gradients().items() if masked else ():
            torch.testing.assert_close(mean_U, masks[name].grad.mean(0), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(
                square_U, masks[name].grad.square().mean(0), rtol=1e-4, atol=1e-4
            )


def test_a_step_is_that_of_adam_on_the_mean_loss_over_both_micro_batches_or_one():
    shape = NetworkShape(
        fields=2, numerics=3, slots=4, embedding_dim=4, bottom=(5,), top=(8, 6), interaction="dot"
    )
    generator = torch.Generator().manual_seed(0)
    branch = branch_of(shape, generator)
    parameters = {
        name: tensor.clone().requires_grad_() for name, tensor in branch.parameters.items()
    }
    optimizer = torch.optim.Adam(parameters.values())
    for rate, events in ((1e-3, (20, 0)), (3e-3, (7, 8)), (1e-3, (20, 0)), (1e-3, (3, 4))):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for parameter in parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        for passes, count in zip(branch.passes_by_micro_batch, events, strict=True):
            if count:
                given, errors_B = (
                    inputs_of(shape, count, generator),
                    torch.randn(count, generator=generator),
                )
                forward(passes, given)
                passes.backward(errors_B)
                (correction(branch.network, parameters, *given) @ errors_B / sum(events)).backward()
        branch.step(rate, events)
        optimizer.step()
        for name, parameter in branch.parameters.items():
            torch.testing.assert_close(parameter, parameters[name].detach(), rtol=1e-5, atol=1e-7)
    assert branch.steps == 4
