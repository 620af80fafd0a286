//! The one place where the library's errors become a client's.

use std::{fmt::Display, future::Future};

use containerd_shim_protos::ttrpc::{self, Code as RpcCode, get_status};
use mooring::{
    error::{Code, Coded},
    telemetry::trace::carried,
};

/// The error of `call` on `kind` `id`: `create sandbox "ID": …`.
pub fn status<E: Coded + Display>(call: &str, kind: &str, id: &str, error: &E) -> ttrpc::Error {
    answer(error.code(), format!("{call} {kind} {id:?}: {error}"))
}

/// An error of class `code`.
pub fn answer(code: Code, message: String) -> ttrpc::Error {
    let code = match code {
        Code::NotFound => RpcCode::NOT_FOUND,
        Code::AlreadyExists => RpcCode::ALREADY_EXISTS,
        Code::FailedPrecondition => RpcCode::FAILED_PRECONDITION,
        Code::InvalidArgument => RpcCode::INVALID_ARGUMENT,
        Code::Unavailable => RpcCode::UNAVAILABLE,
        Code::DeadlineExceeded => RpcCode::DEADLINE_EXCEEDED,
        Code::Unimplemented => RpcCode::UNIMPLEMENTED,
        Code::Unknown => RpcCode::UNKNOWN,
    };
    ttrpc::Error::RpcStatus(get_status(code, message))
}

/// Does `work` to its end, even when the client that asked for it goes away or loses patience: the server drops what
/// it waits for then, which must not leave a container half made.
pub async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = ttrpc::Result<T>> + Send + 'static,
) -> ttrpc::Result<T> {
    match tokio::spawn(carried(work)).await {
        Ok(result) => result,
        Err(error) => Err(answer(Code::Unknown, format!("the work was given up: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Gone;

    impl Display for Gone {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("it is gone")
        }
    }

    impl Coded for Gone {
        fn code(&self) -> Code {
            Code::NotFound
        }
    }

    #[test]
    fn an_error_says_what_was_done_to_what() {
        let ttrpc::Error::RpcStatus(status) = status("stop", "sandbox", "a", &Gone) else {
            panic!("no status")
        };
        assert_eq!(status.code(), RpcCode::NOT_FOUND);
        assert_eq!(status.message(), "stop sandbox \"a\": it is gone");
    }

    #[tokio::test]
    async fn work_goes_on_when_nobody_waits_for_it() {
        let (done, seen) = tokio::sync::oneshot::channel();
        let (go, wait) = tokio::sync::oneshot::channel::<()>();
        let mut work = Box::pin(to_the_end(async move {
            let _ = wait.await;
            let _ = done.send(());
            Ok(())
        }));
        // Started, then dropped.
        let once = std::future::poll_fn(|cx| {
            let _ = work.as_mut().poll(cx);
            std::task::Poll::Ready(())
        });
        once.await;
        drop(work);
        go.send(()).unwrap();
        seen.await.unwrap();
    }
}
