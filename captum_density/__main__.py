"""`python -m captum_density`: the audit from the command line; the work is in `_command`."""

import io
import sys
from collections.abc import Sequence

from captum_density._command.arguments import interrupts_wait, make_parser, parse


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the audit with command line arguments.

    Args:
        arguments: The arguments after the program's name; None takes them from ``sys.argv``.

    Raises:
        SystemExit: With status 2 after bad input, 1 where scikit-learn is missing, and 130 after Ctrl-C; one line says
            why.
    """
    parser, store = make_parser(), None
    try:
        parsed = parse(parser, arguments)
        store = parsed.out / "cells"
        # Only now: `--help` and a bad argument answer without loading the rest.
        with interrupts_wait():
            from captum_density._command.job import BadInput, audit_digits, audit_model, lack_of_memory
        try:
            (audit_digits if parsed.model is None else audit_model)(parsed, store)
        except BadInput as error:
            parser.error(str(error))
        except OSError as error:
            parser.error(f"argument --out: cannot write to {parsed.out}: {error}")
        except (MemoryError, RuntimeError) as error:
            if (advice := lack_of_memory(error)) is None:
                raise
            parser.error(advice)
        except ImportError as error:
            raise SystemExit(f"{parser.prog}: error: {error}") from error
    except KeyboardInterrupt:
        how = "nothing was measured yet"
        if store is not None and store.is_dir() and any(store.glob("**/*.json")):
            how = f"what was measured is kept in {store}, and the same command with --resume goes on from there"
        print(f"\n{parser.prog}: interrupted; {how}", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that has no plus-minus sign
    main()
