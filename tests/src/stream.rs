//! The streams of exec, attach and port-forward.
