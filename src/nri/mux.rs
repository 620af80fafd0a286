//! One socket that carries two connections, as NRI has it: each piece is preceded by the connection's number and its own
//! length. A plugin serves on the first connection, the runtime on the second.

use std::io;

use tokio::{
    io::{
        AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf,
        duplex, split,
    },
    net::UnixStream,
    sync::Mutex,
    task::JoinHandle,
};

const PLUGIN: u32 = 1;
const RUNTIME: u32 = 2;
const HEADER: usize = 8;
/// The longest piece that is sent. NRI's Go plugins read into a buffer of this length and fail where a piece is longer.
const PIECE: usize = 4096;
/// The longest piece that is taken: a whole message of ttrpc.
const LONGEST: usize = 10 + (4 << 20);

/// The two connections of a socket.
pub(super) struct Connections {
    /// On which the plugin serves.
    pub(super) plugin: DuplexStream,
    /// On which the runtime serves.
    pub(super) runtime: DuplexStream,
    pub(super) carrier: Carrier,
}

/// Carries what the connections have for each other. Dropping it ends both, and the socket.
pub(super) struct Carrier(JoinHandle<()>);

impl Carrier {
    /// Waits for the end of the socket.
    pub(super) async fn ended(&mut self) {
        let _ = (&mut self.0).await;
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Has two connections over `trunk`.
pub(super) fn connections(trunk: UnixStream) -> Connections {
    let (plugin, plugins_end) = duplex(PIECE);
    let (runtime, runtimes_end) = duplex(PIECE);
    let carrier = tokio::spawn(async move {
        if let Err(error) = carry(trunk, plugins_end, runtimes_end).await {
            log::debug!("connection to an NRI plugin: {error}");
        }
    });
    Connections { plugin, runtime, carrier: Carrier(carrier) }
}

/// Until one side ends.
async fn carry(
    trunk: impl AsyncRead + AsyncWrite,
    plugin: DuplexStream,
    runtime: DuplexStream,
) -> io::Result<()> {
    let (from_trunk, to_trunk) = split(trunk);
    let to_trunk = Mutex::new(to_trunk);
    let (from_plugin, to_plugin) = split(plugin);
    let (from_runtime, to_runtime) = split(runtime);
    tokio::select! {
        ended = distribute(from_trunk, to_plugin, to_runtime) => ended,
        ended = gather(PLUGIN, from_plugin, &to_trunk) => ended,
        ended = gather(RUNTIME, from_runtime, &to_trunk) => ended,
    }
}

/// Gives what arrives to the connection that it is for. What is for none is nobody's.
async fn distribute(
    mut trunk: impl AsyncRead + Unpin,
    mut plugin: WriteHalf<DuplexStream>,
    mut runtime: WriteHalf<DuplexStream>,
) -> io::Result<()> {
    loop {
        let connection = trunk.read_u32().await?;
        let length = trunk.read_u32().await?;
        if length as usize > LONGEST {
            return Err(io::Error::other(format!("a piece of {length} bytes")));
        }
        let mut piece = (&mut trunk).take(length.into());
        let carried = match connection {
            PLUGIN => tokio::io::copy(&mut piece, &mut plugin).await?,
            RUNTIME => tokio::io::copy(&mut piece, &mut runtime).await?,
            _ => tokio::io::copy(&mut piece, &mut tokio::io::sink()).await?,
        };
        if carried < u64::from(length) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Sends what a connection has to say.
async fn gather(
    connection: u32,
    mut from: ReadHalf<DuplexStream>,
    trunk: &Mutex<impl AsyncWrite + Unpin>,
) -> io::Result<()> {
    let mut piece = [0; HEADER + PIECE];
    loop {
        let (header, content) = piece.split_at_mut(HEADER);
        let length = from.read(content).await?;
        if length == 0 {
            return Ok(());
        }
        let (first, second) = header.split_at_mut(HEADER / 2);
        first.copy_from_slice(&connection.to_be_bytes());
        // No longer than PIECE.
        second.copy_from_slice(&u32::try_from(length).unwrap_or(0).to_be_bytes());
        let whole = piece.get(..HEADER + length).unwrap_or_default();
        trunk.lock().await.write_all(whole).await?;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pair() -> (Connections, Connections) {
        let (one, other) = UnixStream::pair().unwrap();
        (connections(one), connections(other))
    }

    #[tokio::test]
    async fn each_connection_has_its_own_bytes() {
        let (mut ours, mut theirs) = pair();
        ours.plugin.write_all(b"configure").await.unwrap();
        ours.runtime.write_all(b"registered").await.unwrap();
        let (mut first, mut second) = ([0; 9], [0; 10]);
        theirs.runtime.read_exact(&mut second).await.unwrap();
        theirs.plugin.read_exact(&mut first).await.unwrap();
        assert_eq!((&first[..], &second[..]), (&b"configure"[..], &b"registered"[..]));
    }

    #[tokio::test]
    async fn a_piece_has_the_number_of_its_connection_and_its_length_before_it() {
        let (trunk, mut raw) = UnixStream::pair().unwrap();
        let mut ours = connections(trunk);
        ours.plugin.write_all(b"abc").await.unwrap();
        let mut sent = [0; 11];
        raw.read_exact(&mut sent).await.unwrap();
        assert_eq!(&sent, b"\0\0\0\x01\0\0\0\x03abc");
        raw.write_all(b"\0\0\0\x09\0\0\0\x02xx\0\0\0\x02\0\0\0\x02ok").await.unwrap();
        let mut received = [0; 2];
        ours.runtime.read_exact(&mut received).await.unwrap();
        assert_eq!(&received, b"ok", "what is of no connection is passed over");
    }

    #[tokio::test]
    async fn no_piece_is_longer_than_a_go_plugin_reads() {
        let (trunk, mut raw) = UnixStream::pair().unwrap();
        let mut ours = connections(trunk);
        let sender = tokio::spawn(async move {
            ours.plugin.write_all(&[7; 3 * PIECE + 5]).await.unwrap();
            ours
        });
        let mut left = 3 * PIECE + 5;
        while left > 0 {
            let mut header = [0; HEADER];
            raw.read_exact(&mut header).await.unwrap();
            let length = u32::from_be_bytes(header[4..].try_into().unwrap()) as usize;
            assert!(length <= 4096, "{length}");
            raw.read_exact(&mut vec![0; length]).await.unwrap();
            left -= length;
        }
        drop(sender.await.unwrap());
    }

    #[tokio::test]
    async fn what_is_too_long_and_an_end_in_mid_piece_end_both() {
        for torn in [&b"\0\0\0\x01\xff\xff\xff\xff"[..], b"\0\0\0\x01\0\0\0\x09torn"] {
            let (trunk, mut raw) = UnixStream::pair().unwrap();
            let mut ours = connections(trunk);
            raw.write_all(torn).await.unwrap();
            if torn.len() > HEADER {
                drop(raw);
            }
            let mut all = Vec::new();
            ours.runtime.read_to_end(&mut all).await.unwrap();
            assert_eq!(all, b"");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn whatever_is_sent_arrives(texts in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..9000)), 0..8)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (ours, theirs) = pair();
                let whole = |first| -> Vec<u8> {
                    let all = texts.iter().filter(|(one, _)| *one == first);
                    all.flat_map(|(_, text)| text.clone()).collect()
                };
                let (one, other) = (whole(true), whole(false));
                let (Connections { mut plugin, runtime: mut second, carrier: _ours }, Connections { plugin: mut at, runtime: mut beside, carrier: _theirs }) = (ours, theirs);
                let (mut got_one, mut got_other) = (vec![0; one.len()], vec![0; other.len()]);
                let (sent, also, read, last) = tokio::join!(
                    async {
                        for (_, text) in texts.iter().filter(|(first, _)| *first) {
                            plugin.write_all(text).await?;
                        }
                        io::Result::Ok(())
                    },
                    second.write_all(&other),
                    at.read_exact(&mut got_one),
                    beside.read_exact(&mut got_other),
                );
                sent.unwrap();
                also.unwrap();
                read.unwrap();
                last.unwrap();
                assert_eq!((got_one, got_other), (one, other));
            });
        }
    }
}
