//! A connection's limits: their number, and the time until the first byte. HTTP/1 only: the sniffing of HTTP/2 has no time limit
//! of its own.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum_server::accept::Accept;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

/// Accepts connections while there are slots.
#[derive(Clone)]
pub struct Limit<A> {
    pub inner: A,
    pub slots: Arc<Semaphore>,
    pub first_byte: Duration,
}

impl<A, S> Accept<TcpStream, S> for Limit<A>
where
    A: Accept<TcpStream, S> + 'static,
    A::Future: Send + 'static,
    A::Stream: Send + 'static,
    A::Service: Send + 'static,
    S: 'static,
{
    type Stream = Connection<A::Stream>;
    type Service = A::Service;
    type Future = Pin<Box<dyn Future<Output = io::Result<(Self::Stream, Self::Service)>> + Send>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let Ok(permit) = self.slots.clone().try_acquire_owned() else {
            return Box::pin(async { Err(io::Error::other("too many connections")) });
        };
        let (accepted, wait) = (self.inner.accept(stream, service), self.first_byte);
        Box::pin(async move {
            let (io, service) = accepted.await?;
            let first = Some(Box::pin(tokio::time::sleep(wait)));
            Ok((Connection { io, seen: 0, first, _permit: permit }, service))
        })
    }
}

const HTTP2: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection that holds its slot.
pub struct Connection<T> {
    io: T,
    /// Bytes that could begin HTTP/2.
    seen: usize,
    first: Option<Pin<Box<Sleep>>>,
    _permit: OwnedSemaphorePermit,
}

impl<T: AsyncRead + Unpin> AsyncRead for Connection<T> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        match Pin::new(&mut this.io).poll_read(context, buffer) {
            Poll::Pending => {
                let is_over = this.first.as_mut().is_some_and(|time| time.as_mut().poll(context).is_ready());
                if is_over { Poll::Ready(Err(io::ErrorKind::TimedOut.into())) } else { Poll::Pending }
            }
            done => {
                for byte in &buffer.filled()[before..] {
                    if this.first.is_none() {
                        break;
                    }
                    if *byte != HTTP2[this.seen] {
                        this.first = None;
                    } else {
                        this.seen += 1;
                        if this.seen == HTTP2.len() {
                            return Poll::Ready(Err(io::Error::other("HTTP/2 is not served")));
                        }
                    }
                }
                done
            }
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Connection<T> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(context)
    }
}
