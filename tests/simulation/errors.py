"""What code of a dead node meets."""

__all__ = ["NodeDead"]


class NodeDead(BaseException):
    """The node that this code runs on has crashed.

    Every seam object of the node raises it from then on, so that nothing that a leftover
    `finally:` or `except:` does can reach a disk or a peer. It is no `Exception`: a real crash is
    not handled by any handler either, and a handler must not take it for an I/O error to retry.
    """
