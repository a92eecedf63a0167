package config

import (
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

func readCredential(v value, all *ids) Credential {
	m := v.mapping()
	c := Credential{}
	c.ID, c.Name = all.read(m)
	c.Type = need(m, "type", "write "+TypeSFTP+" or "+TypeAPI, choice(TypeSFTP, TypeAPI))
	switch c.Type {
	case TypeSFTP:
		c.SFTP = readSFTP(m)
	case TypeAPI:
		c.API = readAPI(m)
	default:
		return c // which keys belong to it cannot be known
	}
	m.done()
	c.account = c.computeAccount()
	return c
}

func readSFTP(m *mapping) *SFTPCredential {
	c := &SFTPCredential{
		Hostname:             get(m, "hostname", "sftp.attentivemobile.com", readHostname),
		Port:                 get(m, "port", 22, whole(1, 65535)),
		Username:             need(m, "username", "name the user to log in as", text),
		Passphrase:           get(m, "passphrase", Secret{}, secret),
		PrivateKey:           get(m, "private_key", Secret{}, secret),
		PrivateKeyPassphrase: get(m, "private_key_passphrase", Secret{}, secret),
		HostKeys:             get(m, "host_keys", nil, someOf(readHostKey, "list at least one key, or name known_hosts instead")),
		KnownHosts:           get(m, "known_hosts", "", readKnownHosts),
		Sessions:             get(m, "sessions", 2, whole(1, 16)),
	}
	if !m.has("passphrase") && !m.has("private_key") {
		m.missing("passphrase", "give it passphrase or private_key, as {file: PATH} or {env: NAME}")
	}
	if extra, ok := m.lookup("private_key_passphrase"); ok && !m.has("private_key") {
		extra.fault("is there without private_key", "add private_key, or remove it")
	}
	known, both := m.lookup("known_hosts")
	switch {
	case both && m.has("host_keys"):
		known.fault("is there beside host_keys", "remove one of the two")
	case !both && !m.has("host_keys"):
		m.missing("host_keys", "give it host_keys or known_hosts; see what the host shows with: ssh-keyscan "+c.Hostname+
			", and compare it with what its owner says")
	}
	return c
}

func readHostname(v value) string {
	s := text(v)
	if s != "" && !isHost(s) {
		v.fault(fmt.Sprintf("is %q", s), "write a host name or an address, without port or scheme")
		return ""
	}
	return s
}

func readHostKey(v value) string {
	s := text(v)
	if s == "" {
		return ""
	}
	key, _, options, rest, err := ssh.ParseAuthorizedKey([]byte(s))
	if err != nil || len(options) > 0 || len(rest) > 0 {
		v.fault("is not a host key", `write type and key in quotes, as "ssh-ed25519 AAAA...", without the host name`)
		return ""
	}
	if _, ok := key.(*ssh.Certificate); ok {
		v.fault("is a certificate", "write the key that the host shows; certificates are not accepted")
		return ""
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}

func readKnownHosts(v value) string {
	path := file(v)
	if path == "" {
		return ""
	}
	if _, err := knownhosts.New(path); err != nil {
		v.fault(err.Error(), "repair the file, or make it anew with ssh-keyscan")
		return ""
	}
	return path
}

func readAPI(m *mapping) *APICredential {
	return &APICredential{
		Key:      need(m, "api_key", "write {file: PATH} or {env: NAME}", secret),
		BaseURL:  get(m, "base_url", "https://api.attentivemobile.com", readBaseURL),
		Ceilings: get(m, "ceilings", publishedCeilings, readCeilings),
		Jitter:   get(m, "jitter", 5*time.Millisecond, duration(time.Millisecond, 500*time.Millisecond)),
	}
}

func readCeilings(v value) Ceilings {
	m := v.mapping()
	most := publishedCeilings
	c := Ceilings{
		Attributes:  get(m, "attributes", most.Attributes, ceiling(most.Attributes)),
		Subscribe:   get(m, "subscribe", most.Subscribe, ceiling(most.Subscribe)),
		Unsubscribe: get(m, "unsubscribe", most.Unsubscribe, ceiling(most.Unsubscribe)),
		Bulk:        get(m, "bulk", most.Bulk, ceiling(most.Bulk)),
		BulkStatus:  get(m, "bulk_status", most.BulkStatus, ceiling(most.BulkStatus)),
	}
	m.done()
	return c
}

// ceiling reads calls per second at an endpoint whose limit is published.
func ceiling(published int) func(value) int {
	within := whole(1, maxCeiling)
	return func(v value) int {
		n := within(v)
		if n > published {
			v.warn(fmt.Sprintf("is %d, above the published limit of %d", n, published), "keep it if Attentive has raised the limit of this account")
		}
		return n
	}
}

func readBaseURL(v value) string {
	s := text(v)
	if s == "" {
		return ""
	}
	u, err := url.Parse(s)
	switch {
	case err == nil && u.User != nil:
		v.fault("has a secret in it", "remove user and password; the API takes only api_key")
		return ""
	case err != nil || !hasScheme(u, "http", "https") || !isHost(u.Hostname()) || u.RawQuery != "" || u.Fragment != "":
		v.fault("is not the URL of an API", "write https://HOST, without the version (/v1)")
		return ""
	case u.Scheme == "http" && !loopback(u.Hostname()):
		v.warn("sends the API key unencrypted", "write https unless this is a test network")
	}
	return strings.TrimRight(s, "/")
}

func loopback(name string) bool {
	return name == "localhost" || net.ParseIP(name).IsLoopback()
}
