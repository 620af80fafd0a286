//! The streams of exec, attach and port-forward: CRI's streaming server, spoken to by websocket.

use anyhow::{Context, Result, bail};
use futures_util::{SinkExt, StreamExt};
use k8s_cri::v1 as cri;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::cri::{Container, Pod};

/// What an exec or attach is to be connected with.
#[derive(Clone, Copy, Default)]
pub struct Wish {
    /// A terminal.
    pub tty: bool,
    /// Standard input.
    pub stdin: bool,
}

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// An open exec, attach or port-forward.
pub struct Session {
    socket: WebSocketStream<TcpStream>,
    /// What has come on standard output, or from the port.
    pub stdout: Vec<u8>,
    /// What has come on standard error.
    pub stderr: Vec<u8>,
    /// The final status, as JSON.
    pub status: Option<String>,
}

impl Container {
    /// Exec with streams.
    pub async fn open_exec(&self, command: &[&str], wish: Wish) -> Result<Session> {
        let request = cri::ExecRequest {
            container_id: self.id.clone(),
            cmd: command.iter().map(ToString::to_string).collect(),
            tty: wish.tty,
            stdin: wish.stdin,
            stdout: true,
            stderr: !wish.tty,
        };
        let url = self.node().cri().exec(request).await.context("Exec")?.into_inner().url;
        Session::open(&url).await
    }

    /// Attach with streams.
    pub async fn open_attach(&self, wish: Wish) -> Result<Session> {
        let request = cri::AttachRequest {
            container_id: self.id.clone(),
            stdin: wish.stdin,
            tty: wish.tty,
            stdout: true,
            stderr: !wish.tty,
        };
        let url = self.node().cri().attach(request).await.context("Attach")?.into_inner().url;
        Session::open(&url).await
    }
}

impl Pod {
    /// A connection to a port of the pod.
    pub async fn open_port(&self, port: i32) -> Result<Session> {
        let request = cri::PortForwardRequest { pod_sandbox_id: self.id.clone(), port: vec![port] };
        let answer = self.node().cri().port_forward(request).await.context("PortForward")?;
        Session::open(&answer.into_inner().url).await
    }
}

impl Session {
    async fn open(url: &str) -> Result<Self> {
        let address =
            url.strip_prefix("http://").context("a streaming address that is not http")?;
        let host = address.split('/').next().context("a streaming address without host")?;
        let stream = TcpStream::connect(host).await.context("connect to the streaming server")?;
        let mut request = format!("ws://{address}").into_client_request()?;
        let protocol = "v4.channel.k8s.io".parse()?;
        request.headers_mut().insert("Sec-WebSocket-Protocol", protocol);
        let (socket, _) =
            tokio_tungstenite::client_async(request, stream).await.context("open the websocket")?;
        Ok(Self { socket, stdout: Vec::new(), stderr: Vec::new(), status: None })
    }

    /// Sends standard input, or data for the port.
    pub async fn send(&mut self, data: &[u8]) -> Result<()> {
        self.send_on(STDIN, data).await
    }

    /// Sets the terminal's size.
    pub async fn resize(&mut self, width: u16, height: u16) -> Result<()> {
        let size = format!(r#"{{"Width":{width},"Height":{height}}}"#);
        self.send_on(RESIZE, size.as_bytes()).await
    }

    async fn send_on(&mut self, channel: u8, data: &[u8]) -> Result<()> {
        let mut message = vec![channel];
        message.extend_from_slice(data);
        self.socket.send(Message::binary(message)).await.context("send on the websocket")
    }

    /// Reads on; false at the end.
    async fn read(&mut self) -> Result<bool> {
        let Some(message) = self.socket.next().await else { return Ok(false) };
        match message {
            Ok(Message::Binary(data)) => {
                if let Some((channel, data)) = data.split_first() {
                    match *channel {
                        STDOUT | STDIN => self.stdout.extend_from_slice(data),
                        STDERR => self.stderr.extend_from_slice(data),
                        ERROR => self.status = Some(String::from_utf8_lossy(data).into_owned()),
                        _ => {}
                    }
                }
                Ok(true)
            }
            // The server hangs up as soon as it has said everything.
            Ok(Message::Close(_)) | Err(_) => Ok(false),
            Ok(_) => Ok(true),
        }
    }

    /// Reads until standard output has a text.
    pub async fn expect(&mut self, text: &str) -> Result<()> {
        while !String::from_utf8_lossy(&self.stdout).contains(text) {
            let read = self.read();
            let more =
                tokio::time::timeout(crate::patience(std::time::Duration::from_secs(10)), read)
                    .await;
            let Ok(more) = more else {
                bail!("the stream does not bring {text:?}, only: {}", self.output());
            };
            if !more? {
                bail!("the stream ended without {text:?}: {}", self.output());
            }
        }
        Ok(())
    }

    /// Reads until so many bytes have come on standard output.
    pub async fn receive(&mut self, bytes: usize) -> Result<()> {
        while self.stdout.len() < bytes {
            let limit = crate::patience(std::time::Duration::from_secs(20));
            let Ok(more) = tokio::time::timeout(limit, self.read()).await else {
                bail!("the stream stands still at {} of {bytes} bytes", self.stdout.len());
            };
            if !more? {
                bail!("the stream ended after {} of {bytes} bytes", self.stdout.len());
            }
        }
        Ok(())
    }

    /// Reads to the end and returns everything from standard output.
    pub async fn to_end(&mut self) -> Result<String> {
        while tokio::time::timeout(crate::patience(std::time::Duration::from_secs(20)), self.read())
            .await
            .context("the stream does not end")??
        {}
        Ok(self.output())
    }

    /// What has come on standard output.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Hangs up.
    pub async fn close(mut self) {
        let _ = self.socket.close(None).await;
    }
}
