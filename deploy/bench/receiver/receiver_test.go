package receiver_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"attentive.internal/deploy/allinone/account"
	"attentive.internal/deploy/bench/receiver"
	"attentive.internal/deploy/bench/record"
	"golang.org/x/crypto/ssh"
)

// serve runs a receiver until the end of the test and returns where it is, and
// what it tells of arrivals.
func serve(t *testing.T, cfg receiver.Config) (receiver.Addresses, *record.Record[receiver.Arrival]) {
	t.Helper()
	cfg.Data = t.TempDir()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	read, write := io.Pipe()
	var running sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	running.Go(func() {
		if err := receiver.Serve(ctx, cfg, write); err != nil {
			t.Errorf("Serve: %v", err)
		}
		write.Close()
	})
	var at receiver.Addresses
	if err := json.NewDecoder(bufio.NewReader(read)).Decode(&at); err != nil {
		t.Fatal(err)
	}
	arrivals := record.New[receiver.Arrival]()
	following, stop := context.WithCancel(ctx)
	t.Cleanup(stop)
	running.Go(func() {
		if err := at.Follow(following, arrivals.Add); err != nil {
			t.Errorf("Follow: %v", err)
		}
	})
	return at, arrivals
}

// call sets attributes as a worker that writes the host like that, and returns
// the status.
func call(t *testing.T, at receiver.Addresses, host, body string) int {
	t.Helper()
	_, port, _ := strings.Cut(at.API, ":")
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+host+":"+port+"/v1/attributes/custom", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+account.Token)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

func TestCallsAreToldWithTheirSenders(t *testing.T) {
	t.Parallel()
	at, arrivals := serve(t, receiver.Config{})
	before := time.Now()
	for i, host := range []string{receiver.Spelling(1), receiver.Spelling(2), receiver.Spelling(1)} {
		body := fmt.Sprintf(`{"user": {"phone": "+12025550100"}, "properties": {"update": %d}}`, i+1)
		if status := call(t, at, host, body); status != http.StatusOK {
			t.Fatalf("call %d: status %d", i+1, status)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := arrivals.First(ctx, 2, receiver.Arrival.Call); err != nil {
		t.Fatal(err)
	}
	want := []receiver.Arrival{
		{Sender: "Localhost", Phone: "+12025550100", Number: 1},
		{Sender: "lOcalhost", Phone: "+12025550100", Number: 2},
		{Sender: "Localhost", Phone: "+12025550100", Number: 3},
	}
	for i, got := range arrivals.All() {
		if got.At.Before(before) || got.At.After(time.Now()) {
			t.Errorf("arrival %d at %v, want between %v and now", i, got.At, before)
		}
		before, got.At = got.At, time.Time{}
		if got != want[i] {
			t.Errorf("arrival %d is %+v, want %+v", i, got, want[i])
		}
	}
}

func TestCallsReachTheSandbox(t *testing.T) {
	t.Parallel()
	at, _ := serve(t, receiver.Config{})
	if status := call(t, at, "localhost", `{"user": {"phone": "+12025550100"}, "properties": {"update": [1]}}`); status != http.StatusBadRequest {
		t.Errorf("a call that Attentive refuses: status %d", status)
	}
	if status := call(t, at, "localhost", `{"user": {"phone": "+12025550100"}, "properties": {"update": 7}}`); status != http.StatusOK {
		t.Errorf("status %d", status)
	}
	resp, err := http.Get(at.Control + "/_sandbox/subscribers/+12025550100")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || !strings.Contains(string(body), `"update": "7"`) {
		t.Errorf("the sandbox knows %s, %v", body, err)
	}
}

func TestConnectionsAreToldAndNarrow(t *testing.T) {
	t.Parallel()
	at, arrivals := serve(t, receiver.Config{Bandwidth: 1 << 20})
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(at.HostKey))
	if err != nil {
		t.Fatal(err)
	}
	client, err := ssh.Dial("tcp", at.SFTP, &ssh.ClientConfig{
		User: account.Username, Auth: []ssh.AuthMethod{ssh.Password(account.Passphrase)}, HostKeyCallback: ssh.FixedHostKey(key),
	})
	if err != nil {
		t.Fatal(err)
	}
	client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	a, err := arrivals.First(ctx, 0, func(receiver.Arrival) bool { return true })
	if err != nil || a.Call() {
		t.Fatalf("the first arrival is %+v, %v, want a connection", a, err)
	}

	// What is sent beyond the log-in's first lines is taken slowly: the server
	// reads a packet of half the bandwidth to its end before it refuses it.
	c, err := net.Dial("tcp", at.SFTP)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	begun := time.Now()
	if _, err := c.Write(append([]byte("SSH-2.0-test\r\n\x00\x03\xff\xf0\x04"), make([]byte, 256<<10)...)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, c); err != nil {
		t.Logf("the server ends the connection: %v", err)
	}
	if took := time.Since(begun); took < 200*time.Millisecond {
		t.Errorf("a quarter of the bandwidth was taken in %v", took)
	}
}

func TestSpellingsDiffer(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for n := range receiver.Spellings {
		s := receiver.Spelling(n)
		if seen[s] || !strings.EqualFold(s, "localhost") {
			t.Fatalf("Spelling(%d) = %q", n, s)
		}
		seen[s] = true
	}
}
