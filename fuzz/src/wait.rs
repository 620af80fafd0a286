//! Waiting for what the library does asynchronously.

use std::cell::OnceCell;

use tokio::runtime::{Builder, Runtime};

thread_local! {
    static RUNTIME: OnceCell<Runtime> = const { OnceCell::new() };
}

/// What `work` gives, on this thread.
pub fn wait<T>(work: impl Future<Output = T>) -> T {
    RUNTIME.with(|runtime| {
        let made = || Builder::new_current_thread().enable_all().build();
        runtime.get_or_init(|| made().expect("an async runtime")).block_on(work)
    })
}
