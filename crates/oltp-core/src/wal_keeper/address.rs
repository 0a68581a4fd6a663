//! Where a keeper is and how to get in.
//!
//! On one machine a Unix socket, which only its owner can open, or loopback TCP. Over a network TLS always, and a
//! token that both sides know: whoever can append can decide what a database's history is.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use secrecy::SecretString;

use crate::{CoreError, Result};

/// `unix:PATH` or `host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeeperEndpoint {
    /// A Unix socket.
    Unix(PathBuf),
    /// A host name or address, and a port.
    Tcp(String, u16),
}

impl KeeperEndpoint {
    /// Whether nobody but this machine is on the way.
    pub fn is_local(&self) -> bool {
        match self {
            KeeperEndpoint::Unix(_) => true,
            KeeperEndpoint::Tcp(host, _) => {
                host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
            }
        }
    }
}

impl FromStr for KeeperEndpoint {
    type Err = CoreError;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || CoreError::KeeperAddress { text: text.chars().take(200).collect() };
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(wrong()) } else { Ok(KeeperEndpoint::Unix(path.into())) };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let port = port.parse().map_err(|_| wrong())?;
        if host.is_empty() { Err(wrong()) } else { Ok(KeeperEndpoint::Tcp(host.to_owned(), port)) }
    }
}

impl fmt::Display for KeeperEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeeperEndpoint::Unix(path) => write!(f, "unix:{}", path.display()),
            KeeperEndpoint::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            KeeperEndpoint::Tcp(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

/// A keeper as a compute reaches it. `Debug` hides the token.
#[derive(Debug, Clone)]
pub struct KeeperAddress {
    /// Where it listens.
    pub endpoint: KeeperEndpoint,
    /// What both sides know.
    pub token: Option<SecretString>,
    /// The authority of its certificate; without one the system's. Loopback TCP uses TLS only when it is given.
    pub ca_file: Option<PathBuf>,
}

impl KeeperAddress {
    /// A keeper on this machine.
    pub fn unix(path: impl Into<PathBuf>) -> KeeperAddress {
        KeeperAddress { endpoint: KeeperEndpoint::Unix(path.into()), token: None, ca_file: None }
    }
}

impl fmt::Display for KeeperAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.endpoint, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_as_they_are_shown() {
        for text in ["unix:/run/keeper.sock", "keeper-1.internal:6400", "[::1]:6400", "127.0.0.1:6400"] {
            assert_eq!(text.parse::<KeeperEndpoint>().unwrap().to_string(), text);
        }
        for text in ["", "unix:", "host", "host:", ":1", "host:99999"] {
            assert!(text.parse::<KeeperEndpoint>().is_err(), "{text}");
        }
    }

    #[test]
    fn only_loopback_is_local() {
        let local = |text: &str| text.parse::<KeeperEndpoint>().unwrap().is_local();
        assert!(local("127.0.0.1:1") && local("[::1]:1") && local("localhost:1") && local("unix:/x"));
        assert!(
            !local("0.0.0.0:1") && !local("10.0.0.1:1") && !local("[::]:1") && !local("localhost.evil:1")
        );
    }
}
