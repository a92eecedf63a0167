package plant

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Layout says what the workers are configured with.
type Layout struct {
	Lease time.Duration
	// SFTP are the destinations of each SFTP account. The accounts are on servers
	// of their own.
	SFTP [][]Destination
	// API are the destinations of each API key.
	API [][]Destination
	// Ceilings of each API key.
	Ceilings Ceilings
	// Prefix begins the ids of credentials: another one renames them.
	Prefix string
}

// Destination of either plugin.
type Destination struct {
	ID string
	// Encrypted files, for segments.
	Encrypted bool
	// Bulk sends attributes in batches.
	Bulk bool
}

// Ceilings are calls a second; those of Bulk are needed where a destination is. Zero
// means what Attentive has published.
type Ceilings struct{ Attributes, Bulk, BulkStatus, Subscribe, Unsubscribe int }

// The template of every destination, and the columns that it knows.
const (
	Template = "default"
	Phone    = "phone"
	Email    = "email"
	Customer = "customer"
	Count    = "n"
	OptIn    = "opt_in"
)

// Unit is the sign-up unit.
const Unit = "100001"

const passphrase = "faults"

// token is the API key of an account.
func token(account int) string { return fmt.Sprintf("token-%d", account) }

// KeyID names the API key of an account in the sandbox.
func KeyID(account int) string { return fmt.Sprintf("key-%d", account) }

// secret is the path of a secret.
func (p *Plant) secret(name string) string { return filepath.Join(p.cfg.Dir, name) }

// hide writes the secrets.
func (p *Plant) hide() error {
	err := os.WriteFile(p.secret("passphrase"), []byte(passphrase), 0o600)
	for i := range p.cfg.Layout.API {
		err = errors.Join(err, os.WriteFile(p.secret(KeyID(i)), []byte(token(i)), 0o600))
	}
	return err
}

// yaml is the configuration of a replica.
func (p *Plant) yaml(l Layout, r *Replica) string {
	var b strings.Builder
	var urls []string
	for _, d := range r.doors {
		urls = append(urls, "nats://"+d.Address)
	}
	fmt.Fprintf(&b, "broker: {url: %q, replicas: %d}\nlease: %v\ncredentials:\n", strings.Join(urls, ","), len(p.Nodes), l.Lease)
	for i := range l.SFTP {
		host, port, _ := net.SplitHostPort(p.sftp[i].Address) // as listened on
		fmt.Fprintf(&b, "- {id: %ssftp-%d, type: attentive-mobile, hostname: %s, port: %s, username: relay, passphrase: {file: %q}, host_keys: [%q]}\n",
			l.Prefix, i, host, port, p.secret("passphrase"), strings.TrimSpace(p.Sandboxes[i].HostKey()))
	}
	for i := range l.API {
		fmt.Fprintf(&b, "- {id: %sapi-%d, type: attentive-api, base_url: \"http://%s\", api_key: {file: %q}, ceilings: {%s}}\n",
			l.Prefix, i, p.api.Address, p.secret(KeyID(i)), l.Ceilings.yaml())
	}
	b.WriteString("destinations:\n")
	for i, account := range l.SFTP {
		for _, d := range account {
			b.WriteString(p.segments(l.Prefix, i, d))
		}
	}
	for i, account := range l.API {
		for _, d := range account {
			mode := "custom"
			if d.Bulk {
				mode = "bulk"
			}
			fmt.Fprintf(&b, `- id: %s
  plugin: attentive-api
  credential: %sapi-%d
  settings: {identifier: phone, sign_up_unit: %q, single_opt_in: true, unknown_settle: 3s, api_mode: %s}
  templates:
  - id: %s
    columns: {phone: %s, email: %s, client_user_id: %s, opt_in: %s}
    attributes: {%s: {type: number}}
`, d.ID, l.Prefix, i, Unit, mode, Template, Phone, Email, Customer, OptIn, Count)
		}
	}
	return b.String()
}

func (c Ceilings) yaml() string {
	var all []string
	for name, n := range map[string]int{
		"attributes": c.Attributes, "bulk": c.Bulk, "bulk_status": c.BulkStatus, "subscribe": c.Subscribe, "unsubscribe": c.Unsubscribe,
	} {
		if n > 0 {
			all = append(all, fmt.Sprintf("%s: %d", name, n))
		}
	}
	return strings.Join(all, ", ")
}

func (p *Plant) segments(prefix string, account int, d Destination) string {
	encryption := ""
	if d.Encrypted {
		encryption = fmt.Sprintf(", pgp: {keys: [%q]}", p.publicKey(account))
	}
	return fmt.Sprintf(`- id: %s
  name: %s Segments
  plugin: attentive
  credential: %ssftp-%d
  settings: {client_domain: %s, identifier: phone, guards: {shrink: 1}%s}
  templates:
  - {id: %s, campaigns: true, filename_template: "{{ campaign_name }}{{ group_name }}", columns: {phone: %s}}
`, d.ID, d.ID, prefix, account, d.ID, encryption, Template, Phone)
}
