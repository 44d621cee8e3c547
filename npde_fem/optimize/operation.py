"""Blocks of pyadjoint's tape whose outputs, and whose derivatives, are made all at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from npde_fem.discretize.semidiscrete import Array
from npde_fem.optimize.values import as_array

from pyadjoint import Block, get_working_tape
from pyadjoint.tape import stop_annotating

__all__ = ["Operation"]


class Operation(Block, ABC):
    """An operation on the tape; its inputs are its dependencies, numbered in the order of ``add_dependency``.

    A subclass says how outputs follow from inputs, and the three products with the derivative of that.
    """

    @abstractmethod
    def evaluate(self) -> list[Any]:
        """Return the outputs, as the tape keeps them, for the inputs' present values."""

    @abstractmethod
    def adjoint(self, wanted: Sequence[int], by: Sequence[Any]) -> dict[int, Any]:
        """Return the derivatives by the wanted inputs, given those by the outputs (None for zero)."""

    @abstractmethod
    def tangent(self) -> list[Any]:
        """Return the change of the outputs along the inputs' :meth:`moves`."""

    @abstractmethod
    def second(self, wanted: Sequence[int], by: Sequence[Any], change: Sequence[Any]) -> dict[int, Any]:
        """Return the change of :meth:`adjoint` along the moves, ``change`` being that of ``by``."""

    def values(self) -> list[Array]:
        """Return the inputs' present values, a fresh array each."""
        return [as_array(variable.saved_output) for variable in self.get_dependencies()]

    def moves(self) -> list[Array | None]:
        """Return the directions that the inputs move along, None where one does not."""
        found = (variable.tlm_value for variable in self.get_dependencies())
        return [None if value is None else as_array(value) for value in found]

    def is_current(self) -> bool:
        """Whether the outputs are those of the inputs' present values (collective)."""
        return True

    def record(self, *outputs: Any) -> None:
        """Put the operation, and what it gave, on the working tape."""
        get_working_tape().add_block(self)
        for output in outputs:
            self.add_output(output.create_block_variable())

    # -- pyadjoint's protocol ---------------------------------------------------------------------------------

    def reset_variables(self, types: Any = None) -> None:
        """Begin a sweep; if an optimiser has moved the controls without playing the tape, play it first.

        Raises
        ------
        RuntimeError
            If that is needed on a tape that is not the working one.
        """
        super().reset_variables(types)
        if self.is_current():
            return
        tape = get_working_tape()
        if tape is None or self not in tape.get_blocks():
            raise RuntimeError(
                f"the tape that {self} stands on was given other values and not played with them: evaluate the reduced "
                "functional before its derivatives, or make this tape the working one"
            )
        blocks = tape.get_blocks()
        with stop_annotating():
            for block in blocks[blocks.index(self) :]:
                block.recompute()

    # What is prepared at once is handed out one by one.

    def prepare_recompute_component(self, inputs: Any, relevant_outputs: Any) -> list[Any]:
        return self.evaluate()

    def recompute_component(self, inputs: Any, block_variable: Any, idx: int, prepared: list[Any]) -> Any:
        return prepared[idx]

    def prepare_evaluate_adj(self, inputs: Any, adj_inputs: list[Any], relevant_dependencies: Any) -> dict[int, Any]:
        return self.adjoint([i for i, _ in relevant_dependencies], adj_inputs)

    def evaluate_adj_component(
        self, inputs: Any, adj_inputs: Any, block_variable: Any, idx: int, prepared: Any = None
    ) -> Any:
        return prepared[idx]

    def prepare_evaluate_tlm(self, inputs: Any, tlm_inputs: Any, relevant_outputs: Any) -> list[Any]:
        return self.tangent()

    def evaluate_tlm_component(
        self, inputs: Any, tlm_inputs: Any, block_variable: Any, idx: int, prepared: Any = None
    ) -> Any:
        return prepared[idx]

    def prepare_evaluate_hessian(
        self, inputs: Any, hessian_inputs: list[Any], adj_inputs: list[Any], relevant_dependencies: Any
    ) -> dict[int, Any]:
        return self.second([i for i, _ in relevant_dependencies], adj_inputs, hessian_inputs)

    def evaluate_hessian_component(
        self,
        inputs: Any,
        hessian_inputs: Any,
        adj_inputs: Any,
        block_variable: Any,
        idx: int,
        relevant_dependencies: Any,
        prepared: Any = None,
    ) -> Any:
        return prepared[idx]
