// Package account is the one account that the local Attentive has when a command
// starts it: its log-ins, and the configuration of the relay that uses them.
//
// The log-ins are no secrets. They open nothing but a sandbox on this machine,
// and are the same everywhere, so that what is written in examples works.
package account

import (
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strings"

	"attentive.internal/pkg/sandbox"
	"attentive.internal/pkg/sandbox/api"
)

// The log-ins, and the unit that subscribers sign up to.
const (
	Username   = "sandbox"
	Passphrase = "sandbox passphrase"
	Token      = "sandbox-token"
	SignUpUnit = "100001"
)

// KeyID names the API key in the sandbox's views.
const KeyID = "relay"

// With returns cfg with the account in it.
func With(cfg sandbox.Config) sandbox.Config {
	cfg.Username, cfg.Passphrase = Username, Passphrase
	cfg.Keys = append([]sandbox.APIKey{{
		ID: KeyID, Token: Token, Scopes: []string{api.ScopeAttributes, api.ScopeSubscriptions, api.ScopeReadSubscriptions},
	}}, cfg.Keys...)
	cfg.SignUpUnits = []sandbox.SignUpUnit{{ID: SignUpUnit}}
	return cfg
}

// Ids in the configuration that Relay writes.
const (
	Segments   = "acme-segments"
	Attributes = "acme-attributes"
	Template   = "default"
)

// Files beside the configuration.
const (
	PassphraseFile = "sftp-passphrase"
	TokenFile      = "api-key"
)

// Relay is what a configuration for the account depends on.
type Relay struct {
	// Head is the first lines: where the broker is, and all else that is not the
	// account's.
	Head string
	// SFTPHost and SFTPPort lead to the SFTP server, APIURL to the API.
	SFTPHost, SFTPPort, APIURL string
	// HostKey is the SFTP server's.
	HostKey string
	// PublicKey is the path of the OpenPGP key to encrypt to.
	PublicKey string
	// Settle is the setting unknown_settle; empty for the default.
	Settle string
}

// RelayFor returns what leads to a sandbox that listens. Its data is in dir.
func RelayFor(s *sandbox.Sandbox, dir string) (Relay, error) {
	host, port, err := net.SplitHostPort(s.SFTPAddr())
	if err != nil {
		return Relay{}, fmt.Errorf("sandbox address: %w", err)
	}
	return Relay{
		SFTPHost: host, SFTPPort: port, APIURL: s.APIURL(), HostKey: s.HostKey(),
		PublicKey: filepath.Join(dir, "pgp-public.asc"),
	}, nil
}

// At returns r with the name under which others reach the sandbox.
func (r Relay) At(host string) Relay {
	r.SFTPHost = host
	if u, err := url.Parse(r.APIURL); err == nil {
		u.Host = net.JoinHostPort(host, u.Port())
		r.APIURL = u.String()
	}
	return r
}

// KnownHosts is the SFTP server's line of a known_hosts file.
func (r Relay) KnownHosts() string {
	return fmt.Sprintf("[%s]:%s %s\n", r.SFTPHost, r.SFTPPort, r.HostKey)
}

// YAML is the configuration. Its secrets are in PassphraseFile and TokenFile.
func (r Relay) YAML() string {
	settle := ""
	if r.Settle != "" {
		settle = "\n    unknown_settle: " + r.Settle
	}
	return r.Head + fmt.Sprintf(`credentials:
- id: acme-sftp
  name: Acme SFTP
  type: attentive-mobile
  hostname: %s
  port: %s
  username: %s
  passphrase: {file: %s}
  host_keys: [%q]
- id: acme-api
  name: Acme API
  type: attentive-api
  base_url: %s
  api_key: {file: %s}
destinations:
- id: %s
  name: Acme Attentive Segments
  plugin: attentive
  credential: acme-sftp
  access: {business_users: true}
  settings:
    client_domain: acme
    identifier: phone
    default_region: US
    pgp: {keys: [%q]}
  templates:
  - id: %s
    name: Attentive
    campaigns: true
    filename_template: "{{ campaign_name }}{{ group_name }}"
    columns: {phone: mobile}
- id: %s
  name: Acme Attentive attributes
  plugin: attentive-api
  credential: acme-api
  settings:
    identifier: phone
    default_region: US
    sign_up_unit: %q
    single_opt_in: true%s
  templates:
  - id: %s
    columns: {phone: mobile, client_user_id: customer_id, opt_in: sms opt-in}
    attributes:
      first name: {}
      favorite color: {}
      loyalty points: {type: number}
`, r.SFTPHost, r.SFTPPort, Username, PassphraseFile, strings.TrimSpace(r.HostKey), r.APIURL, TokenFile,
		Segments, r.PublicKey, Template, Attributes, SignUpUnit, settle, Template)
}
