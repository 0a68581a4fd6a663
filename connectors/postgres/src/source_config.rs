//! Where a Postgres server is and how to get in.
//!
//! A [`SourceConfig`] comes from a `postgres://` URL plus what the configuration file says beside it. The password
//! lives in a [`SecretString`] and is shown nowhere: not by `Debug`, not in errors, not in the place's name.

use crate::error::{Error, Place, Result};
use crate::tls::TlsMode;
use percent_encoding::percent_decode_str;
use secrecy::SecretString;
use std::path::PathBuf;
use std::time::Duration;

/// Long enough for a server on another continent that is just waking up, short enough to be noticed.
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const DEFAULT_PORT: u16 = 5432;

/// One address at which the server may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// A name or IP address.
    Tcp(String),
    /// The directory in which the unix socket lies.
    Unix(PathBuf),
}

/// A server, a database in it, and who goes there.
#[derive(Debug, Clone)]
pub struct SourceConfig {
    /// Addresses with ports, tried in order; the first that takes the connection (and TLS) is used.
    pub hosts: Vec<(Host, u16)>,
    /// The role.
    pub user: String,
    /// The database.
    pub dbname: String,
    /// The password (`Debug` hides it).
    pub password: Option<SecretString>,
    /// How far the connection is protected.
    pub tls: TlsMode,
    /// Certificate authorities to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Shown in `pg_stat_activity`.
    pub application_name: String,
    /// Upper bound on each of the two steps of opening a session: connection with TLS (for each address), then log-in.
    pub connect_timeout: Duration,
    /// Command-line options for the server process (`options` in a URL; some hosted services route by them).
    pub options: Option<String>,
}

impl SourceConfig {
    /// Reads a `postgres://user:password@host:port/database?parameters` URL. What is given beside the URL goes before
    /// what stands in it. Without a TLS mode anywhere it is [`TlsMode::Prefer`].
    pub fn from_url(
        url: &str,
        password: Option<SecretString>,
        tls: Option<TlsMode>,
        ca_file: Option<PathBuf>,
    ) -> Result<SourceConfig> {
        let mut config = UrlParts::split(url)?.into_config()?;
        config.password = password.or(config.password);
        config.tls = tls.unwrap_or(config.tls);
        config.ca_file = ca_file.or(config.ca_file);
        Ok(config)
    }

    /// The same server and role, another database.
    pub fn with_database(&self, dbname: &str) -> SourceConfig {
        SourceConfig { dbname: dbname.to_owned(), ..self.clone() }
    }

    /// `host:port/database`, for people.
    pub fn place(&self) -> String {
        let hosts: Vec<String> = self
            .hosts
            .iter()
            .map(|(host, port)| match host {
                Host::Tcp(name) if name.contains(':') => format!("[{name}]:{port}"),
                Host::Tcp(name) => format!("{name}:{port}"),
                Host::Unix(dir) => dir.join(format!(".s.PGSQL.{port}")).display().to_string(),
            })
            .collect();
        format!("{}/{}", hosts.join(","), self.dbname)
    }

    pub(crate) fn error_place(&self) -> Place {
        Place { name: self.place(), user: self.user.clone() }
    }
}

/// The pieces of a URL, still percent-encoded.
struct UrlParts<'a> {
    /// The URL with its password struck out, for messages.
    shown: String,
    user: Option<&'a str>,
    password: Option<&'a str>,
    hosts: Vec<&'a str>,
    dbname: Option<&'a str>,
    parameters: Vec<(&'a str, &'a str)>,
}

impl<'a> UrlParts<'a> {
    /// Splits by hand because URLs of Postgres may name several hosts, which general URL parsers refuse.
    fn split(url: &'a str) -> Result<Self> {
        let rest = url
            .strip_prefix("postgres://")
            .or_else(|| url.strip_prefix("postgresql://"))
            // Nothing of a text that is no URL is shown: it may be a password pasted into the wrong place.
            .ok_or_else(|| invalid("…", "it must begin with postgres:// or postgresql://"))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, dbname) = match rest.split_once('/') {
            Some((authority, dbname)) => (authority, Some(dbname)),
            None => (rest, None),
        };
        let (credentials, hosts) = match authority.rsplit_once('@') {
            Some((credentials, hosts)) => (Some(credentials), hosts),
            None => (None, authority),
        };
        let (user, password) = match credentials.map(|c| c.split_once(':').unwrap_or((c, ""))) {
            Some((user, password)) => (Some(user), Some(password)),
            None => (None, None),
        };
        let shown = format!(
            "postgres://{}{hosts}/{}",
            user.map(|u| format!("{u}@")).unwrap_or_default(),
            dbname.unwrap_or("")
        );
        let parameters = query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                pair.split_once('=').ok_or_else(|| invalid(&shown, "a parameter after `?` has no `=`"))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(UrlParts {
            user: user.filter(|u| !u.is_empty()),
            password: password.filter(|p| !p.is_empty()),
            hosts: hosts.split(',').filter(|h| !h.is_empty()).collect(),
            dbname: dbname.filter(|d| !d.is_empty()),
            parameters,
            shown,
        })
    }

    fn into_config(self) -> Result<SourceConfig> {
        let mut hosts = Vec::new();
        for host in &self.hosts {
            hosts.push(self.host(host)?);
        }
        let mut user = self.user.map(|u| self.decode(u)).transpose()?;
        let mut dbname = self.dbname.map(|d| self.decode(d)).transpose()?;
        let mut password = self.password.map(|p| self.decode(p)).transpose()?.map(SecretString::from);
        let (mut tls, mut ca_file, mut options, mut port) = (TlsMode::Prefer, None, None, None);
        let mut application_name = String::from("tidewater");
        let mut connect_timeout = DEFAULT_CONNECT_TIMEOUT;
        for (key, value) in &self.parameters {
            let value = self.decode(value)?;
            match *key {
                "host" => hosts = value.split(',').map(|h| (host_of(h), DEFAULT_PORT)).collect(),
                "port" => port = Some(self.port(&value)?),
                "user" => user = Some(value),
                "password" => password = Some(value.into()),
                "dbname" => dbname = Some(value),
                "sslmode" => tls = value.parse().map_err(|problem: String| invalid(&self.shown, problem))?,
                "sslrootcert" if value == "system" => ca_file = None,
                "sslrootcert" => ca_file = Some(PathBuf::from(value)),
                "application_name" => application_name = value,
                "options" => options = Some(value),
                "connect_timeout" => {
                    let seconds: u64 =
                        value.parse().ok().filter(|s| (1..=3600).contains(s)).ok_or_else(|| {
                            invalid(&self.shown, "connect_timeout must be 1 to 3600 seconds")
                        })?;
                    connect_timeout = Duration::from_secs(seconds);
                }
                // Asking for channel binding and not getting it would be a silent loss of protection.
                "channel_binding" if value != "require" => {}
                "channel_binding" => {
                    return Err(invalid(
                        &self.shown,
                        "channel_binding=require is not supported: leave it out and use tls: verify-full",
                    ));
                }
                other => {
                    return Err(invalid(
                        &self.shown,
                        format!(
                            "unknown parameter `{other}`; known are host, port, user, password, dbname, sslmode, \
                             sslrootcert, application_name, connect_timeout, options"
                        ),
                    ));
                }
            }
        }
        if hosts.is_empty() {
            return Err(invalid(&self.shown, "it names no host (for a unix socket: `?host=/the/directory`)"));
        }
        if let Some(port) = port {
            hosts.iter_mut().for_each(|(_, p)| *p = port);
        }
        let user = user.ok_or_else(|| invalid(&self.shown, "it names no user"))?;
        Ok(SourceConfig {
            dbname: dbname.unwrap_or_else(|| user.clone()),
            hosts,
            user,
            password,
            tls,
            ca_file,
            application_name,
            connect_timeout,
            options,
        })
    }

    fn host(&self, text: &str) -> Result<(Host, u16)> {
        // An IPv6 address stands in brackets; its own colons are no port.
        let (host, port) = match text.strip_prefix('[').and_then(|t| t.split_once(']')) {
            Some((host, rest)) => (host, rest.strip_prefix(':')),
            None => match text.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        let host = self.decode(host)?;
        if host.is_empty() {
            return Err(invalid(&self.shown, "a host is empty"));
        }
        let port = port.filter(|p| !p.is_empty()).map_or(Ok(DEFAULT_PORT), |p| self.port(p))?;
        Ok((host_of(&host), port))
    }

    fn port(&self, text: &str) -> Result<u16> {
        text.parse()
            .ok()
            .filter(|&port| port != 0)
            .ok_or_else(|| invalid(&self.shown, format!("`{text}` is no port number")))
    }

    fn decode(&self, text: &str) -> Result<String> {
        let decoded = percent_decode_str(text)
            .decode_utf8()
            .map_err(|_| invalid(&self.shown, "a part is not UTF-8 after percent-decoding"))?;
        // A zero byte would end the value early in the startup packet and begin another parameter.
        if decoded.contains('\0') {
            return Err(invalid(&self.shown, "a part contains a zero byte"));
        }
        Ok(decoded.into_owned())
    }
}

fn host_of(text: &str) -> Host {
    if text.starts_with('/') { Host::Unix(PathBuf::from(text)) } else { Host::Tcp(text.to_owned()) }
}

fn invalid(shown: &str, problem: impl Into<String>) -> Error {
    Error::InvalidUrl { shown: shown.to_owned(), problem: problem.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;

    fn parse(url: &str) -> Result<SourceConfig> {
        SourceConfig::from_url(url, None, None, None)
    }

    #[test]
    fn a_full_url_is_read_in_all_its_parts() {
        let config =
            parse("postgresql://sy%40nc:p%2Fw@db.example:6543/crm?sslmode=verify-full&connect_timeout=3")
                .unwrap();
        assert_eq!(config.hosts, [(Host::Tcp("db.example".into()), 6543)]);
        assert_eq!((config.user.as_str(), config.dbname.as_str()), ("sy@nc", "crm"));
        assert_eq!(config.password.as_ref().map(|p| p.expose_secret()), Some("p/w"));
        assert_eq!((config.tls, config.connect_timeout), (TlsMode::VerifyFull, Duration::from_secs(3)));
    }

    #[test]
    fn several_hosts_and_ipv6_addresses_are_kept_in_order() {
        let config = parse("postgres://sync@[::1]:5433,second/crm").unwrap();
        assert_eq!(config.hosts, [(Host::Tcp("::1".into()), 5433), (Host::Tcp("second".into()), 5432)]);
        assert_eq!(config.place(), "[::1]:5433,second:5432/crm");
    }

    #[test]
    fn a_unix_socket_may_stand_as_host_or_as_parameter() {
        for url in ["postgres://sync@%2Fvar%2Frun:5433/crm", "postgres://sync@/crm?host=/var/run&port=5433"] {
            let config = parse(url).unwrap();
            assert_eq!(config.hosts, [(Host::Unix("/var/run".into()), 5433)], "{url}");
            assert_eq!(config.place(), "/var/run/.s.PGSQL.5433/crm");
        }
    }

    #[test]
    fn what_stands_beside_the_url_goes_first() {
        let url = "postgres://sync:inside@h/crm?sslmode=disable";
        let config =
            SourceConfig::from_url(url, Some("beside".to_owned().into()), Some(TlsMode::Require), None)
                .unwrap();
        assert_eq!(config.password.as_ref().map(|p| p.expose_secret()), Some("beside"));
        assert_eq!(config.tls, TlsMode::Require);
    }

    #[test]
    fn no_text_of_a_configuration_or_its_errors_holds_the_password() {
        let config = parse("postgres://sync:hunter2@h/crm").unwrap();
        assert!(!format!("{config:?} {}", config.place()).contains("hunter2"));
        for url in [
            "postgres://sync:hunter2@h:notaport/crm",
            "postgres://sync:hunter2@h/crm?what=ever",
            "postgres://sync:hunter2@/crm",
            "mysql://sync:hunter2@h/crm",
            "postgres://sync:hunter2@h/crm?sslmode=sometimes",
        ] {
            let error = parse(url).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn what_would_be_misunderstood_is_refused() {
        for url in [
            "postgres://h/crm",
            "postgres://sync@h:0/crm",
            "postgres://sync@h:70000/crm",
            "postgres://sy%00nc@h/crm",
            "postgres://sync@h/crm?channel_binding=require",
            "postgres://sync@h/crm?connect_timeout=0",
        ] {
            assert!(matches!(parse(url), Err(Error::InvalidUrl { .. })), "{url}");
        }
    }
}
