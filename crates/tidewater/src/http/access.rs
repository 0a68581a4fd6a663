//! Who may change something.

use crate::config::Secret;
use axum::http::{HeaderMap, StatusCode, header};
use sha2::{Digest, Sha256};
use std::net::{IpAddr, SocketAddr};

/// What is known of the callers of one listener.
pub enum Access {
    /// The control socket: its file mode has decided already.
    Owner,
    /// TCP: a token, and a Host header that no web page of another name can forge.
    Token {
        /// the token; without one nothing can be changed
        token: Option<Secret>,
        /// the address listened on
        address: SocketAddr,
    },
}

/// Why a changing request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("no token is configured: set `listen.token`, or use the command line on the daemon's machine")]
    NoToken,
    #[error("the header `Authorization: Bearer <token>` is missing or wrong")]
    WrongToken,
    #[error("the Host header does not name this server")]
    WrongHost,
}

impl Refusal {
    pub(super) fn status(self) -> StatusCode {
        match self {
            Refusal::WrongToken => StatusCode::UNAUTHORIZED,
            Refusal::NoToken | Refusal::WrongHost => StatusCode::FORBIDDEN,
        }
    }
}

impl Access {
    pub(super) fn check(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let Access::Token { token, address } = self else { return Ok(()) };
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        if !names_address(host, *address) {
            return Err(Refusal::WrongHost);
        }
        let token = token.as_ref().ok_or(Refusal::NoToken)?;
        let given = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "))
            .ok_or(Refusal::WrongToken)?;
        // Digests differ at a random byte, so the time of comparing them tells nothing about the token.
        if Sha256::digest(given) == Sha256::digest(token.expose()) {
            Ok(())
        } else {
            Err(Refusal::WrongToken)
        }
    }
}

/// Whether a Host header names the address by number, or a loopback address as `localhost`. A name that someone else's
/// DNS points here is none of these.
fn names_address(host: &str, address: SocketAddr) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, port.parse().ok()),
        _ => (host, Some(80)),
    };
    if port != Some(address.port()) {
        return false;
    }
    match name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        Ok(ip) => ip == address.ip() || address.ip().is_unspecified(),
        Err(_) => {
            name.eq_ignore_ascii_case("localhost")
                && (address.ip().is_loopback() || address.ip().is_unspecified())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(token: Option<&str>, host: &str, authorization: Option<&str>) -> Result<(), Refusal> {
        let access = Access::Token {
            token: token.map(|token| Secret::from(token.to_owned())),
            address: "127.0.0.1:8080".parse().unwrap(),
        };
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        if let Some(authorization) = authorization {
            headers.insert(header::AUTHORIZATION, authorization.parse().unwrap());
        }
        access.check(&headers)
    }

    #[test]
    fn over_tcp_only_the_token_with_the_right_host_may_change_something() {
        let bearer = Some("Bearer hunter2");
        assert_eq!(checked(Some("hunter2"), "127.0.0.1:8080", bearer), Ok(()));
        assert_eq!(checked(Some("hunter2"), "localhost:8080", bearer), Ok(()));
        assert_eq!(checked(Some("hunter2"), "evil.example:8080", bearer), Err(Refusal::WrongHost));
        assert_eq!(checked(Some("hunter2"), "127.0.0.1:9999", bearer), Err(Refusal::WrongHost));
        assert_eq!(checked(Some("hunter2"), "localhost:8080", Some("Bearer x")), Err(Refusal::WrongToken));
        assert_eq!(checked(Some("hunter2"), "localhost:8080", None), Err(Refusal::WrongToken));
        assert_eq!(checked(None, "localhost:8080", bearer), Err(Refusal::NoToken));
    }

    #[test]
    fn the_owner_of_the_control_socket_needs_no_token() {
        assert_eq!(Access::Owner.check(&HeaderMap::new()), Ok(()));
    }
}
