package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// A request that has no answer by then is lost.
const patience = 10 * time.Second

// Requests of one lane at once; one that finds no place is lost.
const atOnceMax = 2000

// How many losses are told in words.
const wordsMax = 10

// One way of asking; an error is a loss.
type ask func(context.Context) error

// What became of a lane's requests.
type lane struct {
	Name string   `json:"lane"`
	Sent int      `json:"sent"`
	Lost int      `json:"lost"`
	P50  float64  `json:"p50_ms"`
	P99  float64  `json:"p99_ms"`
	Max  float64  `json:"max_ms"`
	Said []string `json:"said,omitempty"`

	lock sync.Mutex
	took []time.Duration
}

func (of *lane) record(began time.Time, err error) {
	took := time.Since(began)
	of.lock.Lock()
	defer of.lock.Unlock()
	of.took = append(of.took, took)
	if err != nil {
		of.Lost++
		if len(of.Said) < wordsMax {
			of.Said = append(of.Said, fmt.Sprintf("%s after %d ms: %v", began.UTC().Format("15:04:05.000"), took.Milliseconds(), err))
		}
	}
}

func (of *lane) sum() {
	sort.Slice(of.took, func(a, b int) bool { return of.took[a] < of.took[b] })
	at := func(share float64) float64 {
		if len(of.took) == 0 {
			return 0
		}
		return float64(of.took[int(share*float64(len(of.took)-1))].Microseconds()) / 1000
	}
	of.Sent, of.P50, of.P99, of.Max = len(of.took), at(0.5), at(0.99), at(1)
}

func load(arguments []string) error {
	flags := flag.NewFlagSet("load", flag.ExitOnError)
	url := flags.String("url", "http://web:80/", "what HTTP lanes ask")
	target := flags.String("grpc", "", "host:port that the gRPC lane asks")
	chat := flags.String("chat", "", "URL of a WebSocket that is held open from start to end")
	rate := flags.Int("rate", 100, "requests a second of each lane")
	seconds := flags.Int("seconds", 0, "how long; 0: until SIGTERM")
	strict := flags.Bool("strict", false, "a loss is a failure: exit 1")
	names := flags.String("lanes", "h1-post,h1-get,h2-post", "h1-post, h1-get, h2-post, grpc, chat")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if *seconds > 0 {
		limited, end := context.WithTimeout(ctx, time.Duration(*seconds)*time.Second)
		defer end()
		ctx = limited
	}
	var lanes []*lane
	var running sync.WaitGroup
	for _, name := range strings.Split(*names, ",") {
		of := &lane{Name: name}
		lanes = append(lanes, of)
		var asking ask
		switch name {
		case "h1-post":
			asking = http1("POST", *url)
		case "h1-get":
			asking = http1("GET", *url)
		case "h2-post":
			asking = http2("POST", *url)
		case "grpc":
			var err error
			if asking, err = grpcCheck(*target); err != nil {
				return err
			}
		case "chat":
			running.Go(func() { converse(ctx, of, *chat) })
			continue
		default:
			return fmt.Errorf("no lane %q", name)
		}
		running.Go(func() { send(ctx, of, *rate, asking) })
	}
	fmt.Fprintln(os.Stderr, "store: sending")
	go report(ctx, lanes)
	running.Wait()
	lost := 0
	for _, of := range lanes {
		of.sum()
		of.took = nil
		lost += of.Lost
	}
	if err := json.NewEncoder(os.Stdout).Encode(lanes); err != nil || lost == 0 || !*strict {
		return err
	}
	return fmt.Errorf("%d lost", lost)
}

// Says how it stands, every second.
func report(ctx context.Context, lanes []*lane) {
	for tick := time.NewTicker(time.Second); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var line []string
		for _, of := range lanes {
			of.lock.Lock()
			line = append(line, fmt.Sprintf("%s %d/%d", of.Name, of.Lost, len(of.took)))
			of.lock.Unlock()
		}
		fmt.Fprintln(os.Stderr, "store: lost/sent", strings.Join(line, " "))
	}
}

// Sends at a rate, whatever becomes of it, and waits for the answers.
func send(ctx context.Context, of *lane, rate int, asking ask) {
	var running sync.WaitGroup
	places := make(chan struct{}, atOnceMax)
	tick := time.NewTicker(time.Second / time.Duration(rate))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			running.Wait()
			return
		case <-tick.C:
		}
		began := time.Now()
		select {
		case places <- struct{}{}:
		default:
			of.record(began, fmt.Errorf("%d requests run already", atOnceMax))
			continue
		}
		running.Go(func() {
			limited, end := context.WithTimeout(context.Background(), patience)
			defer end()
			of.record(began, asking(limited))
			<-places
		})
	}
}

func http1(method, url string) ask {
	// Many idle connections are kept: those are what rollouts break.
	transport := &http.Transport{MaxIdleConnsPerHost: 64, DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext}
	return over(transport, method, url)
}

func http2(method, url string) ask {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	return over(&http.Transport{Protocols: protocols}, method, url)
}

func over(transport *http.Transport, method, url string) ask {
	return func(ctx context.Context) error {
		var body io.Reader
		if method == "POST" {
			body = strings.NewReader("an order")
		}
		request, err := http.NewRequestWithContext(ctx, method, url, body)
		if err != nil {
			return err
		}
		// Go sends a POST again when a kept connection turns out dead, if it can have its body
		// anew: that would hide a loss.
		request.GetBody = nil
		answer, err := transport.RoundTrip(request)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		said, err := io.ReadAll(answer.Body)
		if err != nil {
			return err
		}
		if answer.StatusCode != http.StatusOK {
			return fmt.Errorf("%d %s", answer.StatusCode, strings.TrimSpace(string(said)))
		}
		return nil
	}
}

func grpcCheck(target string) (ask, error) {
	connection, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry())
	if err != nil {
		return nil, err
	}
	client := grpc_health_v1.NewHealthClient(connection)
	return func(ctx context.Context) error {
		_, err := client.Check(ctx, &grpc_health_v1.HealthCheckRequest{})
		return err
	}, nil
}

// One WebSocket from start to end: each message must come back.
func converse(ctx context.Context, of *lane, url string) {
	dialing, end := context.WithTimeout(ctx, patience)
	defer end()
	connection, _, err := websocket.Dial(dialing, url, nil)
	if err != nil {
		of.record(time.Now(), err)
		return
	}
	defer connection.CloseNow()
	for tick := time.NewTicker(50 * time.Millisecond); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		began := time.Now()
		err := echo(connection, began.String())
		of.record(began, err)
		if err != nil {
			return
		}
	}
}

func echo(connection *websocket.Conn, word string) error {
	ctx, end := context.WithTimeout(context.Background(), patience)
	defer end()
	if err := connection.Write(ctx, websocket.MessageText, []byte(word)); err != nil {
		return err
	}
	_, said, err := connection.Read(ctx)
	if err == nil && string(said) != word {
		err = fmt.Errorf("%q came back as %q", word, said)
	}
	return err
}
