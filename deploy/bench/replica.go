package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"attentive.internal/deploy/allinone/account"
	"attentive.internal/deploy/bench/receiver"
	"attentive.internal/deploy/process"
	"attentive.internal/pkg/config"
)

// replica is a running worker.
type replica struct {
	*process.Process
	// sender is how it writes the receiver's host.
	sender string
	ops    string
	config string // the path of its configuration
}

// add starts one more replica and returns when it is ready.
func (f *fleet) add(ctx context.Context) error {
	r, err := f.start(ctx)
	if err != nil {
		return err
	}
	if err := r.Ready(ctx, "http://"+r.ops+"/readyz"); err != nil {
		return errors.Join(err, r.Stop())
	}
	f.alive = append(f.alive, r)
	return nil
}

// start starts a process with a configuration and a spelling of its own.
func (f *fleet) start(ctx context.Context) (*replica, error) {
	f.started++
	if f.started >= receiver.Spellings {
		return nil, fmt.Errorf("%d replicas were started, and their calls cannot be told apart any more", f.started)
	}
	r := &replica{sender: receiver.Spelling(f.started)}
	var err error
	if r.ops, err = process.FreeAddress(ctx); err != nil {
		return nil, err
	}
	if err := f.configure(r); err != nil {
		return nil, err
	}
	// It ends with the fleet, not with the phase that it was started in.
	r.Process, err = process.Start(exec.CommandContext(context.WithoutCancel(ctx), f.program, "run", "--config", r.config))
	if err != nil {
		return nil, err
	}
	profiled(ctx, r.Process, r.ops)
	return r, nil
}

// configure writes a replica's configuration.
func (f *fleet) configure(r *replica) error {
	sftpHost, sftpPort, _ := strings.Cut(f.receiver.SFTP, ":")
	_, apiPort, _ := strings.Cut(cmp.Or(f.api, f.receiver.API), ":")
	relay := account.Relay{
		Head:     fmt.Sprintf("broker: {url: %q, replicas: %d}\nops_address: %q\nlease: %v\n", f.url, f.brokers, r.ops, f.lease),
		SFTPHost: sftpHost, SFTPPort: sftpPort, APIURL: "http://" + r.sender + ":" + apiPort,
		HostKey: f.receiver.HostKey, PublicKey: f.receiver.PublicKey,
	}
	dir := filepath.Join(f.dir, "replica-"+strconv.Itoa(f.started))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	r.config = filepath.Join(dir, "relay.yaml")
	for name, text := range map[string]string{
		r.config: f.raise(relay.YAML()),
		filepath.Join(dir, account.PassphraseFile): account.Passphrase,
		filepath.Join(dir, account.TokenFile):      account.Token,
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			return err
		}
	}
	return f.join(r)
}

// raise puts the ceiling into a configuration.
func (f *fleet) raise(text string) string {
	if f.ceiling == 0 {
		return text
	}
	const key = "  api_key:"
	return strings.Replace(text, key, fmt.Sprintf("  ceilings: {attributes: %d}\n%s", f.ceiling, key), 1)
}

// join fails unless the replica's configuration names the account of the others.
func (f *fleet) join(r *replica) error {
	cfg, err := config.Load(r.config)
	if err != nil {
		return err
	}
	destination, _ := cfg.Destination(f.destination)
	credential, _ := cfg.Credential(destination.Credential)
	if f.account != "" && credential.Account() != f.account {
		return fmt.Errorf("%s names another account than the other replicas do", r.config)
	}
	f.account = credential.Account()
	return nil
}

// replace takes old, which has ended or is asked to, out of the fleet, and starts
// another replica instead.
func (f *fleet) replace(ctx context.Context, old *replica) error {
	f.alive = slices.DeleteFunc(f.alive, func(r *replica) bool { return r == old })
	return f.add(ctx)
}

// owner returns the replica that owns the destination, as soon as there is
// exactly one that says so.
func (f *fleet) owner(ctx context.Context) (owner *replica, err error) {
	err = until(ctx, "the owner of "+f.destination, func(ctx context.Context) error {
		owner = nil
		for _, r := range f.alive {
			owned, err := r.owns(ctx, f.destination)
			switch {
			case err != nil:
				return err
			case owned && owner != nil:
				return errors.New("two replicas say that they own it")
			case owned:
				owner = r
			}
		}
		if owner == nil {
			return errors.New("no replica says that it owns it")
		}
		return nil
	})
	return owner, err
}

// owns reads from a replica's metrics whether it owns the destination.
func (r *replica) owns(ctx context.Context, destination string) (bool, error) {
	text, err := get(ctx, "http://"+r.ops+"/metrics")
	return strings.Contains(string(text), fmt.Sprintf("relay_owned{destination=%q} 1\n", destination)), err
}
