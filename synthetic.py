"""Write a marketplace data set made from rules: any size, the shape of the MeLi Data Challenge 2019, no download.

    python synthetic.py                                              # 100 thousand titles, 120 categories
    python synthetic.py --rows 20000000 --categories 1588 --out data/raw/full_size.csv

The CSV has the challenge's header `title,label_quality,language,category`: Spanish and Portuguese product titles with
brands, model codes, units, promotions, misspellings and mojibake. As in the real data, categories differ 69 to 1 in
size, 6 % of the rows are `reliable`, and about 5.5 % of the others carry a wrong label, mostly a sibling's. Accessories
name the product they are for, many titles never say what they sell, and siblings share words, so no single keyword
decides a title and word order helps. Every category name starts with SYN_, so a report cannot pass for a real one.

The first 120 categories are the tables below; more (up to 1,866) are derived from them, such as
SYN_BLENDERS_SPARE_PARTS. The bytes depend on --rows, --categories and --seed alone. The seed picks the titles, not the
rules: files of two seeds are two samples of one data set.

Time on two cores: the default 2 seconds, 20 million rows of 1,588 categories (1.9 GB) 25 seconds; memory below 400 MB.
Balanced accuracy to expect on the default file, 80 % of it for training: 0.64 for the most telling keyword, 0.81 for a
linear SVM on words, 0.84 on words and word pairs (class weights balanced). Wrong labels cap it at 0.945.
"""

import random
import re
import time
import unicodedata
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import data
from data import UserError

# ------------------------------------------------------------------------------------------------------------- knobs

PREFIX = "SYN_"            # how prepare.py and every report recognise this data: keep
RELIABLE = 0.0592          # share of reliable rows; raise it to get reliable scores from a small file
NEVER_RELIABLE = 0.12      # share of categories without any reliable row
LABEL_NOISE = 0.055        # share of wrong labels among unreliable rows; 0 shows a model's ceiling
ONE_LANGUAGE = 0.016       # share of categories sold in one language only
FAR = 0.15                 # wrong labels and mentions that leave the family; lower is harder
NO_HEAD = 0.1              # titles of brand, model and attributes only; raise to make the task harder
VAGUE = 0.02               # titles with nothing but family and promotion words: nobody can tell
MENTION = 0.5              # titles that name a second product after their own; raise to reward word order
BORROWED = 0.18            # descriptive words and models taken from a sibling; raise to make words less telling
MISSPELT = 0.02            # share of phrases with a typing error
MOJIBAKE = 0.004           # titles with broken accents
PLAIN = 0.60               # titles without accents
MID_WORD = 0.08            # titles cut at 60 characters, whatever stands there
TOO_LONG = 0.012           # titles of more than 60 characters
SHORT = 0.3                # titles that stop early; the others fill the 60 characters a seller has
CHUNK = 50_000             # rows made at a time: memory grows with it, and the bytes written change with it
SIZES = [0, 0.03, 0.36, 0.43, 0.95, 1], [275, 1000, 5000, 9000, 17000, 19000]  # quantiles of category size: two humps

# Fields of a title, how often each appears, and the orders in which sellers put them. Column counts: M is connector +
# product + its word, K letters + digits + suffix, U number + unit, R three syllables.
FIELDS = {"P": 0.25, "H": 1.0, "M": 1.0, "W": 1.0, "B": 0.5, "L": 0.55, "K": 0.3, "V": 0.95, "F": 0.55, "U": 0.45,
          "A": 0.6, "R": 0.2, "T": 0.65, "X": 0.25}
COLUMNS = {"M": 3, "K": 3, "U": 2, "R": 3}
SPELLINGS = 8              # of each piece of text: as in the tables, without accents, mojibake, then typing errors
ORDERS = ["PHMWBLKVUARFTX", "HMBLKWUVAFRXTP", "PHBMLKWAUVFRTX", "HWMVBLKUAFRTXP", "HBLKMWVXAUFRTP", "BLKHMWVUAFRTPX",
          "HWVABMLUKFRXTP", "TPHMLWKBVAURFX", "LHMWAVBUKFXRTP", "PRHWMBKLVAUFTX"]

# ------------------------------------------------------------------------------------------------------------ tables
# A family: name | brands | descriptive words | units. A category: name | head nouns | models | descriptive words.
# `vino=vinho` is Spanish=Portuguese, an item without `=` serves both. Earlier items are drawn more often. Siblings and
# strangers share items on purpose (reloj, funda, batería, disco, juego): take care not to make a head noun unique.

TABLE = """
FAMILY DRINKS | diageo, pernod, campari, gancia | botella=garrafa, importado, reserva, añejo=envelhecido,
  estuche=estojo, caja=caixa, edición limitada=edição limitada, para regalo=para presente, licor, lata, bebida | ml,
  cc, l, litros, años=anos
RUMS | ron=rum, ron blanco=rum branco, ron añejo=rum envelhecido, bebida | havana club, bacardi, captain morgan, flor
  de caña, zacapa, montilla | dorado=dourado, cubano, caribe, especiado, carta blanca, miniatura
WHISKIES | whisky, whiskey, whisky escocés=whisky escocês, bebida | johnnie walker, jack daniels, chivas regal,
  ballantines, old parr, jameson | red label, black label, blended, single malt, escocés=escocês, bourbon, miniatura
WINES | vino=vinho, vino tinto=vinho tinto, vino blanco=vinho branco, botella=garrafa | rutini, trapiche, catena
  zapata, concha y toro, miolo, casillero del diablo | malbec, cabernet, merlot, tinto, rosado=rosé, bodega=vinícola,
  brut
BEERS | cerveza=cerveja, cerveza artesanal=cerveja artesanal, chopp, pack cerveza=pack cerveja | heineken, stella
  artois, budweiser, quilmes, brahma, corona | ipa, rubia=loira, roja=vermelha, lata, long neck, malta, barril
SPARKLING_WINES | espumante, champagne, champaña=champanhe, vino espumante=vinho espumante | chandon, baron b, salton,
  freixenet, veuve clicquot, mumm | brut, extra brut, rosado=rosé, demi sec, brindis=brinde, malbec
GINS | gin, ginebra=gim, bebida, london dry gin | bombay sapphire, tanqueray, beefeater, gordons, hendricks, bulldog |
  london dry, tónica=tônica, botánicos=botânicos, pink, blanca=branca, especiado

FAMILY TABLEWARE | nadir, rigolleau, durax, tramontina, oxford, luminarc, libbey | vidrio=vidro, porcelana,
  cerámica=cerâmica, cristal, térmico, cocina=cozinha, sublimado, bar, desayuno=café da manhã, personalizado | ml, cc,
  unidades, cm, pzas=peças
DRINKING_GLASSES | vaso=copo, vasos de vidrio=copos de vidro, vaso alto=copo long drink, juego de vasos=jogo de copos
  | nadir americano, rigolleau nevada, boston, paris, oca | whisky, cerveza=cerveja, trago=drink, facetado, agua=água
WINE_GLASSES | copa=taça, copas de vino=taças de vinho, copa de champagne=taça de champagne, cáliz=cálice | riedel,
  bohemia, chardonnay, gallant, windsor, bordeaux | vino=vinho, champagne, cristal, gin, agua=água, brindis=brinde
MUGS | taza=caneca, tazón=canecão, taza de café=xícara de café, pocillo=xícara | star wars, harry potter, mafalda,
  disney, marvel, game of thrones | sublimada=sublimação, té=chá, café, frases, plato=pires, mágica
THERMAL_CUPS | vaso térmico=copo térmico, mug térmico=caneca térmica, botella térmica=garrafa térmica, termo=squeeze |
  stanley, contigo, lumilagro, termolar, starbucks, aladdin | acero=aço, mate=chimarrão, tapa=tampa, viaje=viagem,
  café, bala
PLATES | plato=prato, platos playos=pratos rasos, juego de platos=jogo de pratos, vajilla=aparelho de jantar | biona,
  tsuji, corona, duralex, opaline, coup | hondo=fundo, playo=raso, postre=sobremesa, cuadrado=quadrado, taza=xícara,
  mesa
PITCHERS | jarra, jarra de vidrio=jarra de vidro, botellón=moringa, jarra térmica | pampulha, bormioli, plasutil,
  sanremo, aquaria, frascos | agua=água, jugo=suco, tapa=tampa, pico=bico, café, vaso=copo

FAMILY KITCHEN | philips, oster, moulinex, mondial, arno, electrolux, black decker, britania, atma, philco |
  eléctrica=elétrica, automática, cocina=cozinha, vapor, potencia=potência, acero=aço, digital, hogar=casa, jarra,
  filtro, cuchillas=lâminas | w, watts, v, litros, l, tazas=xícaras
COFFEE_MAKERS | cafetera=cafeteira, máquina de café, cafetera express=cafeteira expresso, cafetera de filtro=cafeteira
  | nespresso, dolce gusto, primalatte, saeco, delonghi, bialetti | cápsulas, espresso=expresso, filtro, molido=moído,
  italiana
BLENDERS | licuadora=liquidificador, licuadora de mano=mixer, minipimer=mixer, procesadora=processador | osterizer,
  turbo mix, power mix, optimix, nutribullet | vaso=copo, jarra, hielo=gelo, batidos=vitaminas, jugo=suco,
  picadora=triturador
STAND_MIXERS | batidora=batedeira, batidora planetaria=batedeira planetária, batidora de mano=batedeira de mão,
  amasadora=mixer | kitchenaid, planetaria deluxe, ciranda, prima, peabody | bowl=tigela, amasar=massa, torta=bolo,
  ganchos, crema=creme
JUICERS | exprimidor=espremedor, juguera=centrífuga, extractor de jugo=extrator de suco, exprimidor de
  naranja=espremedor de laranja | citromatic, juice extractor, premium fruit, walita, slow juicer | jugo=suco,
  naranja=laranja, frutas, pulpa=polpa
KETTLES | pava eléctrica=chaleira elétrica, pava=chaleira, hervidor=chaleira, jarra eléctrica=jarra elétrica |
  smartlife, liliana, gama, cadence, peabody mate | mate=chimarrão, agua=água, corte, té=chá, café, inox
MICROWAVES | microondas=micro-ondas, horno microondas=forno micro-ondas, horno=forno, grill | bgh quick chef,
  whirlpool, panasonic, samsung, lg neochef, consul | plato=prato, grill, espejo=espelho, blanco=branco, digital,
  convección=convecção

FAMILY CLOCKS | casio, citizen, orient, technos, swatch, quartz, seiko | analógico, digital, pila=pilha, números,
  agujas=ponteiros, luz, alarma=alarme, vintage, acero=aço, silencioso, cuarzo=quartzo | cm, mm, atm, hs=horas
WRISTWATCHES | reloj=relógio, reloj hombre=relógio masculino, reloj mujer=relógio feminino, reloj pulsera=relógio de
  pulso | g-shock, tissot, invicta, tommy, festina, michael kors | sumergible=à prova d'água, malla=pulseira,
  cronógrafo, cuero=couro
ALARM_CLOCKS | despertador, reloj despertador=relógio despertador, radio reloj=rádio relógio, reloj digital=relógio
  digital | herweg, lelong, noblex, philco radio, sony dream | mesa, campana=campainha, velador=cabeceira,
  proyector=projetor, fm
WALL_CLOCKS | reloj de pared=relógio de parede, reloj pared=relógio parede, reloj=relógio, reloj cocina=relógio
  cozinha | ikea, yin, eurotime, herweg parede, gold time | pared=parede, disco de vinilo=disco de vinil,
  madera=madeira, deco, retro=retrô
SMARTWATCHES | smartwatch, reloj inteligente=relógio inteligente, smart band, pulsera inteligente=pulseira inteligente
  | mi band, fitbit, apple watch, galaxy gear, garmin, amazfit | bluetooth, cardíaco, gps,
  notificaciones=notificações, chip, deporte=esporte
WATCH_BANDS | malla=pulseira, correa=correia, malla reloj=pulseira relógio, pulsera silicona=pulseira silicone |
  milanese, nato, hirsch, apple watch, gear sport, mi band | cuero=couro, silicona=silicone, hebilla=fivela,
  repuesto=reposição, acero=aço
STOPWATCHES | cronómetro=cronômetro, temporizador, timer, reloj ajedrez=relógio xadrez | dgt, vollo, kadio, finis,
  galaxy chess | deportivo=esportivo, cocina=cozinha, vueltas=voltas, cordón=cordão, magnético, ajedrez=xadrez

FAMILY PHONES | samsung galaxy, iphone, motorola, xiaomi, huawei, lg, nokia, sony xperia, asus zenfone | celular,
  smartphone, j7, a50, moto g, s8, plus, pro, lite, original, usb, tipo c, pantalla=tela, tablet | gb, mah,
  pulgadas=polegadas, mp, mts=metros
CELLPHONES | celular, teléfono celular=telefone celular, smartphone, teléfono=telefone | redmi note, moto g6, j7
  prime, p20 lite, iphone 7, k10 | liberado=desbloqueado, 4g, dual sim=dual chip, cámara=câmera, libre=anatel,
  memoria=memória
CELLPHONE_COVERS | funda=capa, funda celular=capa celular, funda para celular=capinha para celular, case,
  estuche=capinha | spigen, otterbox, flip cover, uag, tpu gel | silicona=silicone, anti golpes=anti impacto,
  transparente, tapa=tampa, vidrio=vidro
SCREEN_PROTECTORS | vidrio templado=película de vidro, film=película, protector pantalla=protetor de tela,
  glass=película 3d | gorilla glass, nillkin, full glue, hprime, devia | templado=temperado, pantalla=tela, 9h,
  funda=capa, gel, curvo=curva
CELLPHONE_CHARGERS | cargador=carregador, cargador celular=carregador celular, cable usb=cabo usb, fuente=fonte |
  turbo power, quick charge, belkin, inova, anker, baseus | carga rápida=carregamento rápido, auto=veicular,
  pared=tomada, cable=cabo, 2a
CELLPHONE_BATTERIES | batería=bateria, batería celular=bateria celular, pila celular=bateria, batería externa=bateria
  interna | eb-bg, bl-t, probattery, bm47, gk40, power bank | repuesto=reposição, interna, litio=lítio, amperes,
  nueva=nova, carga
HEADPHONES | auriculares=fone de ouvido, auricular=fone, auriculares bluetooth=fone bluetooth, vincha=headset | jbl,
  airpods, philips shb, skullcandy, sennheiser, hyperx cloud | inalámbrico=sem fio, micrófono=microfone, gamer, bass,
  cable=cabo, in ear

FAMILY COMPUTERS | dell, hp, lenovo, asus, acer, logitech, genius, samsung, noga, multilaser | gamer, usb,
  inalámbrico=sem fio, notebook, pc, windows, rgb, óptico, español=abnt2, 15.6, computadora=computador, bluetooth |
  gb, pulgadas=polegadas, ghz, v, dpi
LAPTOPS | notebook, laptop, portátil, computadora portátil=notebook gamer, ultrabook | inspiron, ideapad, thinkpad,
  macbook, vivobook, pavilion | core i5, core i7, ssd, ram, disco, pantalla=tela, teclado
LAPTOP_CHARGERS | cargador notebook=carregador notebook, cargador=carregador, fuente notebook=fonte notebook,
  transformador=fonte | universal 90w, inspiron, thinkpad, only, magsafe, satellite | cable=cabo, pin=pino, 19v, 65w,
  ficha=plug, batería=bateria
LAPTOP_BATTERIES | batería notebook=bateria notebook, batería=bateria, batería para notebook=bateria para notebook,
  pila=bateria | vostro, satellite, hs04, 6 celdas, probook, inspiron | celdas=células, litio=lítio, duración=duração,
  repuesto=reposição, 11.1v
LAPTOP_BAGS | funda notebook=capa notebook, mochila notebook=mochila notebook, maletín=maleta, bolso notebook=bolsa
  notebook, funda=case | targus, everki, case logic, neoprene, swiss gear | impermeable=impermeável, neoprene,
  bolsillo=bolso, mano=mão, porta, tablet
COMPUTER_KEYBOARDS | teclado, teclado gamer, teclado mecánico=teclado mecânico, keyboard, kit teclado | redragon
  kumara, corsair k70, blackwidow, k120, kumara | mecánico=mecânico, teclas, switch, mouse, luces=iluminado, numérico,
  ñ=ç
COMPUTER_MICE | mouse, mouse gamer, mouse inalámbrico=mouse sem fio, pad mouse=mouse pad, ratón=mouse óptico | g203,
  deathadder, m170, cobra, anywhere mx | botones=botões, pad, receptor, láser=laser, teclado, sensor

FAMILY COMPONENTS | kingston, corsair, intel, amd, gigabyte, asus, msi, western digital, adata, seagate | pc, gamer,
  interno, computadora=computador, notebook, servidor, escritorio=desktop, rgb, placa, disco, nuevo sellado=lacrado |
  gb, tb, mhz, ghz, w, mb
RAM_MEMORY | memoria=memória, memoria ram=memória ram, ram, módulo=pente, ddr4 | hyperx fury, vengeance, ballistix,
  valueram, xpg | ddr3, ddr4, sodimm, dimm, notebook, 2400, 1600
MEMORY_CARDS | memoria=memória, tarjeta memoria=cartão de memória, micro sd, memoria sd=cartão sd, pendrive=pen drive
  | sandisk ultra, evo plus, canvas, extreme pro, datatraveler | clase 10=classe 10, celular, adaptador,
  cámara=câmera, sdxc, usb
HARD_DRIVES | disco rígido=hd, disco duro=hd, disco=ssd, disco ssd=ssd, disco externo=hd externo | barracuda, wd blue,
  expansion, a400, my passport | sata, externo, 7200, 2.5, usb 3.0, sólido
PROCESSORS | procesador=processador, micro=processador, micro procesador=processador, cpu | core i3, core i5, ryzen 5,
  pentium, celeron, threadripper | socket, 1151, am4, cooler, núcleos, cache, box
MOTHERBOARDS | motherboard=placa mãe, mother=placa mãe, placa madre=placa mãe, placa=placa mãe, combo
  actualización=kit upgrade | prime b450, h310m, aorus, tuf, a320m | socket, 1151, am4, ddr4, hdmi, sata
GRAPHICS_CARDS | placa de video=placa de vídeo, video=vga, placa=gpu, placa geforce=placa geforce | geforce gtx,
  radeon rx, quadro, gtx 1060, rtx 2070 | ddr5, hdmi, 128 bits, cooler, minería=mineração, pci

FAMILY TOOLS | bosch, makita, dewalt, stanley, black decker, skil, tramontina, bahco, vonder, einhell, irwin |
  profesional=profissional, industrial, eléctrico=elétrico, metal, madera=madeira, acero=aço, mecánico=mecânico,
  percusión=impacto, maletín=maleta, sds | mm, w, v, pulgadas=polegadas, rpm, pzas=peças
DRILLS | taladro=furadeira, taladro percutor=furadeira de impacto, atornillador=parafusadeira, rotomartillo=martelete
  | gsb, hp1640, dcd776, tm500, gsr 120 | percutor=impacto, batería=bateria, mandril, velocidad variable=reversível,
  mecha=broca, inalámbrico=sem fio
DRILL_BITS | mecha=broca, mechas=brocas, set de mechas=jogo de brocas, broca widia=broca vídea, juego mechas=kit
  brocas | ezeta, sds plus, irwin tools, multi construction, hss | taladro=furadeira, widia=vídea, cobalto,
  pared=concreto, copa=serra copo, punta=ponta
ANGLE_GRINDERS | amoladora=esmerilhadeira, amoladora angular=esmerilhadeira angular, esmeril, mini amoladora=lixadeira
  | gws, 9557, dwe4020, ga4530, pulidora | disco, angular, corte, pulir=polir, mango=punho, 115
GRINDING_DISCS | disco, disco de corte, disco diamantado, disco flap, disco amoladora=disco esmerilhadeira | norton,
  aliafor, klingspor, tyrolit, turbo segmentado | corte, diamantado, desbaste, amoladora=esmerilhadeira, lija=lixa,
  115, porcelanato
WRENCHES | llave=chave, juego de llaves=jogo de chaves, llave combinada=chave combinada, tubos=soquetes, llave
  francesa=chave inglesa | gedore, crossmaster, bremen, king tony, belzer | crique=catraca, allen, estriada, boca,
  vanadio=vanádio, encastre=encaixe
TOOL_BOXES | caja de herramientas=caixa de ferramentas, caja=caixa, maletín=maleta, organizador, gabinete=carrinho |
  keter, rimax, fercon, marcon, wonder | herramientas=ferramentas, bandeja, plástica, gavetas, ruedas=rodas,
  tornillos=parafusos

FAMILY CARS | fiat palio, vw gol, chevrolet corsa, ford ka, renault clio, peugeot 206, toyota corolla, uno, fiesta,
  celta, civic, hilux, bosch, monroe, cofap | delantero=dianteiro, trasero=traseiro, derecho=direito,
  izquierdo=esquerdo, motor, nafta=flex, diesel, 1.6, 1.4, 16v, turbo, auto=carro, camioneta=caminhonete | mm, v, l,
  cm, km, litros
BRAKE_PADS | pastillas de freno=pastilha de freio, pastilla=pastilha, juego pastillas=jogo pastilha, kit freno=kit
  freio | ferodo, cobreq, frasle, jurid, ceramic | freno=freio, disco, cerámica=cerâmica, sensor, rueda=roda,
  mordaza=pinça
BRAKE_DISCS | disco de freno=disco de freio, disco=disco, par discos=par discos, campana=tambor, kit freno=kit freio |
  fremax, hipper, brembo, vini, ate | freno=freio, ventilado, sólido, perforado=perfurado, pastilla=pastilha,
  rueda=roda
CAR_SHOCK_ABSORBERS | amortiguador=amortecedor, amortiguadores=amortecedores, espiral=mola, kit suspensión=kit
  suspensão | nakata, corven, fric rot, sachs, kayaba | suspensión=suspensão, cazoleta=coxim, espiral=mola, gas=gás,
  par, tren=eixo
CAR_BATTERIES | batería=bateria, batería auto=bateria carro, acumulador, batería 12v=bateria 12v | moura, heliar,
  willard, prestolite, zetta | 12x65, 12x75, 60ah, libre mantenimiento=selada, diesel, amperes, bornes=polo
CAR_FILTERS | filtro, filtro de aceite=filtro de óleo, filtro de aire=filtro de ar, kit filtros | mann, fram, tecfil,
  wega, mahle | aceite=óleo, aire=ar, habitáculo=cabine, combustible=combustível, nafta=gasolina, polen=pólen
CAR_SEAT_COVERS | funda=capa, fundas asientos=capas de banco, cubre asientos=capa de banco, funda para asiento=capa
  para banco | carfun, iael, eurobag, slim, competition | asiento=banco, cuero=couro, ecocuero=courvin, universal,
  tapizado=estofado, butaca=assento

FAMILY CYCLES | shimano, honda, yamaha, caloi, venzo, zanella, titan, twister, raleigh, vairo, ls2, cg 150 | moto,
  bicicleta, bici=bike, mtb, rodado=aro, ruta=speed, aluminio=alumínio, hombre=masculino, enduro, cross, fibra, urbano
  | mm, v, cc, cm, kg
BICYCLES | bicicleta, mountain bike, bici=bike, bicicleta plegable=bicicleta dobrável | top mega, topper, olmo,
  houston, oggi, gt | cambios=marchas, freno disco=freio a disco, playera=praia, rodado 29=aro 29, cuadro=quadro,
  suspensión=suspensão
BICYCLE_SEATS | asiento=selim, asiento bicicleta=selim bicicleta, sillín=selim, caño asiento=canote selim | selle
  royal, wtb, velo, prologo, bontrager | gel, antiprostático=vazado, resortes=molas, cuero=couro, caño=canote,
  acolchado=macio
BICYCLE_WHEELS | rueda=roda, llanta=aro, cubierta=pneu, rueda bicicleta=roda bicicleta, masa=cubo | pirelli, vzan,
  kenda, mavic, maxxis | rayos=raios, doble pared=parede dupla, cámara=câmara, disco, rodamiento=rolamento, 29
MOTORCYCLE_HELMETS | casco=capacete, casco moto=capacete moto, casco integral=capacete fechado, casco
  rebatible=capacete articulado | agv, hawk, norisk, pro tork, shoei | visor=viseira, integral, abierto=aberto,
  talle=tamanho, pinlock, mate=fosco
MOTORCYCLE_GLOVES | guantes=luvas, guantes moto=luva moto, guante=luva, guantes ciclismo=luva ciclismo | alpinestars,
  fox, x11, texx, nine to one | cuero=couro, protección=proteção, dedo, nudillos=articulações, invierno=inverno,
  táctil=touch
MOTORCYCLE_BATTERIES | batería moto=bateria moto, batería=bateria, batería gel=bateria selada, acumulador | yuasa,
  ytx, motobatt, route, yb5 | 12v, gel, arranque=partida, amperes, 7ah, arrancador=carregador

FAMILY CLOTHES | nike, adidas, levis, zara, lacoste, tommy, kevingston, hering, polo, wrangler, puma |
  hombre=masculino, mujer=feminino, algodón=algodão, talle=tamanho, estampado, slim, manga larga=manga longa,
  niños=infantil, lycra, liso, verano=verão, invierno=inverno | talles=tamanhos, cm, unidades, años=anos
T_SHIRTS | remera=camiseta, remeras=camisetas, musculosa=regata, chomba=polo, camiseta=camisa | dry fit, star wars,
  rolling stones, dragon ball, netflix | algodón=algodão, estampada, cuello=gola, banda, manga corta=manga curta,
  oversize
SHIRTS | camisa, camisa hombre=camisa social, camisola=camisa xadrez, blusa | oxford, tommy fit, dudalina,
  brooksfield, legacy | cuadros=xadrez, botones=botões, vestir=social, jean=jeans, cuello=gola, manga larga=manga
  longa
PANTS | pantalón=calça, jean=calça jeans, pantalón hombre=calça masculina, calza=legging, jogging=calça moletom |
  levis 511, oxford cargo, chupin, wrangler texas, dickies | elastizado=elastano, gabardina=sarja, tiro alto=cintura
  alta, jean=jeans, cargo, bolsillos=bolsos
DRESSES | vestido, vestido fiesta=vestido festa, vestido largo=vestido longo, pollera=saia, enterito=macacão |
  desigual, maria vazquez, farm, forum, las pepas | fiesta=festa, encaje=renda, gasa=chiffon, novia=noiva,
  floreado=floral, corto=curto
JACKETS | campera=jaqueta, campera cuero=jaqueta couro, buzo=moletom, abrigo=casaco, campera jean=jaqueta jeans |
  columbia, north face, montagne, bomber, parka | capucha=capuz, cuero=couro, abrigo=frio, inflable=puffer,
  cierre=zíper, impermeable=impermeável
SWEATERS | sweater=suéter, buzo=moletom, cardigan=cardigã, pulóver=blusa de lã, saco=blusa tricot | bensimon, mauro
  sergio, canguro, gap, hollister | lana=lã, hilo=tricot, capucha=capuz, cuello=gola, escote v=decote v, abrigo=frio

FAMILY BAGS | nike, adidas, puma, kappa, topper, prune, samsonite, wilson, lacar, olympikus, via uno | cuero=couro,
  mujer=feminino, hombre=masculino, talle=tamanho, suela=sola, cierre=zíper, escolar, deporte=esporte, viaje=viagem,
  urbano, gamuza=camurça | cm, litros, l, kg, arg=br
SNEAKERS | zapatillas=tênis, zapatilla=tênis, zapatillas running=tênis corrida, calzado=calçado, zapato=sapatênis |
  air max, superstar, revolution, asics gel, all star, ultraboost | running=corrida, lona, caña=cano,
  entrenamiento=academia, plataforma, cordones=cadarço
BOOTS | botas, borcego=coturno, bota=bota, botineta=bota cano curto, calzado=calçado | caterpillar, timberland, ringo,
  dr martens, west coast | caña alta=cano alto, taco=salto, plataforma, trekking, lluvia=chuva, seguridad=segurança
FOOTBALL_SHOES | botines=chuteira, botines=chuteira society, botín=chuteira campo, zapatilla futsal=tênis futsal,
  calzado=calçado | mercurial, predator, tiempo, copa mundial, umbro | fútbol=futebol, tapones=travas, césped=society,
  sintético, futsal, caña=cano
HANDBAGS | cartera=bolsa, bolso=bolsa, cartera mujer=bolsa feminina, bandolera=bolsa transversal, mochila=mochila
  feminina | blaque, xl extra, michael kors, kipling, jackie smith | hombro=ombro, tachas, bandolera=transversal,
  cadena=corrente, sobre=clutch, shopping
BACKPACKS | mochila, mochila escolar, bolso=bolsa, morral=mochila saco, mochila con ruedas=mochila de rodinhas |
  jansport, wenger, kanken, footy, seanite | escolar, ruedas=rodinhas, notebook, espalda=costas, camping,
  reforzada=reforçada
SUITCASES | valija=mala, valijas=malas de viagem, valija carry on=mala de bordo, bolso de viaje=bolsa de viagem |
  american tourister, travel tech, sestini, mila, primicia | ruedas=rodinhas, rígida, cabina=bordo, candado=cadeado,
  360, carry on

FAMILY BABY | chicco, infanti, fisher price, graco, avent, burigotto, galzerano, cosco, bebesit, disney | bebé=bebê,
  niño=menino, niña=menina, recién nacido=recém nascido, plegable=dobrável, rosa, celeste=azul, infantil, meses,
  evolutivo, maternal | kg, meses, unidades, ml, cm
BABY_STROLLERS | coche=carrinho, cochecito=carrinho de bebê, coche cuna=carrinho berço, paraguas=guarda-chuva |
  maclaren, liteway, rock rio, quinny, trotter | ruedas=rodas, reversible=reversível, travel system, huevito=bebê
  conforto, capota, paseo=passeio
CRIBS | cuna=berço, practicuna=berço portátil, catre=moisés, cama cuna=mini cama | gran valle, tiziano, cotton bear,
  matic, carolina | colchón=colchão, barandas=grade, colecho=acoplado, mosquitero=mosquiteiro,
  funcional=multifuncional, madera=madeira
BABY_CAR_SEATS | butaca=cadeirinha, silla auto=cadeira para auto, huevito=bebê conforto, booster=assento elevação |
  keyfit, nautilus, matrix, neo, side guard | auto=carro, isofix, cinturón=cinto, grupo 1, reclinable=reclinável,
  asiento=assento
HIGH_CHAIRS | silla de comer=cadeira de alimentação, silla=cadeira, sillita=cadeirinha, silla alta=cadeira alta |
  polly, merenda, prima pappa, polo, booster | mesa, bandeja, comer=alimentação, papilla=papinha,
  reclinable=reclinável, portátil
DIAPERS | pañales=fraldas, pañal=fralda, pañales descartables=fraldas descartáveis, pañal de tela=fralda de pano |
  pampers, huggies, babysec, mamypoko, estrella | xxg, hipoalergénico=hipoalergênico, absorción=absorção,
  noche=noturna, premium care, toallitas=lenços
DIAPER_BAGS | bolso maternal=bolsa maternidade, mochila maternal=mochila maternidade, bolso=bolsa, cambiador=trocador
  | skip hop, owen, masterbag, lilica, mundo bebé | pañales=fraldas, térmico, organizador, coche=carrinho,
  cambiador=trocador, mamá=mamãe

FAMILY FURNITURE | mobel, rimax, artely, tramontina, divano, orlandi, platinum, politorno | melamina=mdf, pino=pinus,
  roble=carvalho, nórdico=escandinavo, vidrio=vidro, living=sala, comedor=jantar, oficina=escritório, cajones=gavetas,
  moderno, paraíso=mogno | cm, mts=metros, x 80, puertas=portas, cuerpos=lugares
DINING_TABLES | mesa, mesa comedor=mesa de jantar, juego comedor=conjunto sala de jantar, mesa extensible=mesa
  extensível | saarinen, tulip, eames mesa, provenzal, madesa | sillas=cadeiras, redonda, comedor=jantar,
  extensible=extensível, laqueada=laqueada, tapa=tampo
COFFEE_TABLES | mesa ratona=mesa de centro, mesa de living=mesa lateral, mesa=mesa, mesita=mesinha | noguchi, hairpin,
  tronco, artesano, quadra | living=centro, redonda, revistero=revisteiro, hierro=ferro, auxiliar=apoio,
  estante=prateleira
DESKS | escritorio=escrivaninha, mesa pc=mesa para computador, escritorio gamer=mesa gamer, mesa=mesa escritório |
  reproex, expo, tecno mobili, notable, cubic | computadora=computador, cajones=gavetas, esquinero=canto,
  estudio=estudo, estante=prateleira, teclado
OFFICE_CHAIRS | silla=cadeira, silla oficina=cadeira escritório, sillón gerencial=cadeira presidente, silla
  gamer=cadeira gamer | dxr, gerencial, aluminum, jmi, herman miller | ruedas=rodízios, giratoria=giratória,
  ergonómica=ergonômica, pc, gas=gás, red=tela
DINING_CHAIRS | silla=cadeira, sillas comedor=cadeiras de jantar, banqueta, sillas=cadeiras, butaca=poltrona | eames,
  tolix, windsor, wassily, masters | patas=pés, comedor=jantar, tapizada=estofada, apilable=empilhável, hierro=ferro,
  mesa
SOFAS | sillón=sofá, sofá, sillón cama=sofá cama, futón=futon, sillón esquinero=sofá de canto | chesterfield, essex,
  suecia, linoforte, toronto | chenille=suede, cuerpos=lugares, almohadones=almofadas, retráctil=retrátil,
  pana=veludo, respaldo=encosto

FAMILY BEDDING | piero, cannon, danubio, arcoiris, santista, teka, karsten, buddemeyer, fiberball | algodón=algodão,
  hilos=fios, queen, plazas=solteiro, king=casal, cama, suave=macio, estampado, hipoalergénico=antialérgico, liso,
  microfibra, hotel | cm, plazas=peças, hilos=fios, kg
MATTRESSES | colchón=colchão, colchón resortes=colchão molas, sommier=box, colchón espuma=colchão espuma | exclusive,
  simmons, suavestar, ortobom, castor, probel | resortes=molas, espuma, sommier=box, densidad=densidade,
  almohada=travesseiro, inflable=inflável
PILLOWS | almohada=travesseiro, almohadas=travesseiros, almohada inteligente=travesseiro nasa, almohadón=almofada |
  nasa, duoflex, visco, kavanagh, topper | viscoelástica=viscoelástico, cervical, funda=fronha, plumas=plumas, espuma,
  cuello=pescoço
BED_SHEETS | sábanas=lençol, juego de sábanas=jogo de cama, sábana=lençol, funda almohada=fronha | palette, atria,
  percal 400, palmas, santista royal | ajustable=elástico, percal, almohada=fronha, satén=cetim, matrimonial=casal,
  infantil
BLANKETS | frazada=cobertor, manta, acolchado=edredom, cobertor=edredom, cubrecama=colcha | corderito, flannel,
  jolitex, mantra, kyor | polar=soft, corderito=sherpa, invierno=inverno, sábanas=lençol, reversible=dupla face,
  sillón=sofá
CURTAINS | cortina, cortinas, cortina blackout, cortina roller=persiana, cortina baño=cortina box | roller, ambiance,
  voile, bella janela, sunscreen | ventana=janela, ojales=ilhós, baño=banheiro, barral=varão, voile, blackout
CUSHIONS | almohadón=almofada, funda almohadón=capa almofada, almohadones=almofadas, funda=capa, puff=futon | harry
  potter, mandala, nordic, tropical, emoji | relleno=enchimento, sillón=sofá, funda=capa, deco=decorativa,
  tusor=suede, 40x40

FAMILY MUSIC | yamaha, fender, gibson, ibanez, tagima, casio, roland, behringer, epiphone, giannini, pearl |
  instrumento, acústica, eléctrica=elétrica, principiante=iniciante, estudio=estúdio, escenario=palco, madera=madeira,
  sonido=som, música, con funda=com capa, profesional=profissional | w, cuerdas=cordas, cm, pulgadas=polegadas,
  canales=canais
GUITARS | guitarra=violão, guitarra eléctrica=guitarra, guitarra criolla=violão clássico, guitarra acústica=violão
  folk | stratocaster, les paul, telecaster, squier, c40, antigua casa nuñez | criolla=nylon, cuerdas=cordas,
  zurda=canhota, caoba=mogno, micrófonos=captador, funda=capa
BASSES | bajo=baixo, bajo eléctrico=contrabaixo, bajo 5 cuerdas=baixo 5 cordas, contrabajo=contrabaixo | jazz bass,
  precision, thunderbird, trbx, warwick | cuerdas=cordas, activo=ativo, jazz, fretless, zurdo=canhoto,
  pastillas=captador
GUITAR_STRINGS | cuerdas=cordas, encordado=encordoamento, cuerdas guitarra=cordas violão, encordado bajo=encordoamento
  baixo | daddario, ernie ball, elixir, magma, martina | nylon=náilon, 010, guitarra=violão, bronce=bronze,
  tensión=tensão, acero=aço
GUITAR_CASES | funda=capa, estuche=case, funda guitarra=capa violão, funda bajo=bag baixo, correa=correia | gator,
  rockbag, solid sound, case hard, amadeus | guitarra=violão, acolchada=acolchoada, rígido, mochila, bajo=baixo,
  impermeable=impermeável
DRUMS | batería=bateria, batería acústica=bateria acústica, batería electrónica=bateria eletrônica, platillo=prato,
  tambor=caixa | export, tama imperialstar, zildjian, gretsch, mapex | bombo=bumbo, cuerpos=peças, platillos=pratos,
  redoblante=caixa, pedal, parches=peles
MUSICAL_KEYBOARDS | teclado, órgano=órgão, teclado musical, piano digital, controlador midi=controlador | ctk, psr,
  privia, akai mpk, korg | teclas, sensitivo, 61, midi, pie=suporte, ritmos

FAMILY BEAUTY | loreal, avon, natura, maybelline, gama, mac, revlon, boticario, babyliss, wella, kerastase |
  profesional=profissional, mujer=feminino, hombre=masculino, original, larga duración=longa duração, cabello=cabelo,
  piel=pele, matte, rulos=cachos, importado, keratina=queratina | ml, gr=g, w, tonos=cores, unidades
PERFUMES | perfume, eau de parfum, colonia=colônia, fragancia=desodorante colônia, perfume mujer=perfume feminino |
  carolina herrera, one million, dior sauvage, hugo boss, la vie est belle | edt, edp, spray, probador=tester, floral,
  estuche=estojo
SHAMPOOS | shampoo, acondicionador=condicionador, shampoo y acondicionador=kit shampoo, máscara capilar | elvive,
  pantene, tresemme, redken, salon line | sin sal=sem sal, nutrición=hidratação, anticaspa, pelo=cabelo,
  keratina=queratina, crema=creme
LIPSTICKS | labial=batom, labial líquido=batom líquido, brillo labial=gloss, lápiz labial=batom matte | ruby rose,
  superstay, kylie, velvet teddy, colorstay | matte, indeleble=24h, paleta, rojo=vermelho, nude, labios=lábios
EYESHADOWS | sombras=sombra, paleta de sombras=paleta de sombras, paleta, delineador, kit maquillaje=kit maquiagem |
  naked, ruby rose, huda, kylie, morphe | ojos=olhos, nude, glitter, colores=cores, brocha=pincel,
  maquillaje=maquiagem
HAIR_DRYERS | secador, secador de pelo=secador de cabelo, cepillo secador=escova secadora, secador profesional=secador
  profissional | parlux, taiff, lizze, elegance, tourmaline | iones=íons, difusor, frío=frio, aire=ar, pelo=cabelo,
  viaje=viagem
HAIR_STRAIGHTENERS | planchita=chapinha, plancha de pelo=prancha, plancha=chapinha, cepillo alisador=escova alisadora,
  buclera=modelador | ghd, nano titanium, elegance, philips essential, bellissima | cerámica=cerâmica,
  titanio=titânio, alisado=alisar, pelo=cabelo, placas, vapor

FAMILY PETS | pedigree, royal canin, purina, whiskas, pet injet, furacao, chalesco, eukanuba, dog chow |
  perro=cachorro, gato=gato, mascota=pet, raza pequeña=raça pequena, adulto, cachorro=filhote, veterinaria=petshop,
  perros y gatos=cães e gatos, juguete=brinquedo, higiene | kg, gr=g, cm, l, talles=tamanhos
DOG_FOODS | alimento perro=ração cachorro, alimento=ração, balanceado=ração, alimento perros=ração para cães | pro
  plan, dogui, sieger, golden, vital can | carne, pollo=frango, bolsa=saco, senior=sênior, razas=raças, arroz
CAT_FOODS | alimento gato=ração gato, alimento=ração, balanceado=ração, alimento gatos=ração para gatos | cat chow,
  gati, excellent, fit 32, felix | castrado, pescado=peixe, sachet=sachê, salmón=salmão, bolsa=saco, urinary
PET_COLLARS | collar=coleira, correa=guia, pretal=peitoral, collar perro=coleira cachorro | flexi, seresto, ferplast,
  ezydog, scalibor | pulgas, extensible=retrátil, arnés=peitoral, nylon=náilon, chapita=plaquinha, paseo=passeio
PET_BEDS | cama perro=cama cachorro, moisés=caminha, cama=cama, colchoneta=colchonete, cucha=casinha | iglú, gaston,
  san remo, fábrica pet, nórdica | lavable=lavável, corderito=pelúcia, almohadón=almofada, abrigo=quente, redonda,
  casa
CAT_LITTER | piedras sanitarias=areia sanitária, arena=areia, piedritas=granulado, arenero=caixa de areia, bandeja
  sanitaria=bandeja | stone cat, absorsol, pipicat, silica gel, catsan | aglutinante=aglomerante, sílica, olor=odor,
  bolsa=saco, pala=pá, bandeja
AQUARIUMS | pecera=aquário, acuario=aquário, filtro pecera=filtro aquário, tortuguero=terrário | boyu, atman, resun,
  roxin, aquael | peces=peixes, filtro, bomba, vidrio=vidro, plantas, agua=água

FAMILY TOYS | hasbro, mattel, lego, disney, marvel, estrela, fisher price, rasti, hot wheels, ruibal, grow |
  juguete=brinquedo, niños=infantil, colección=coleção, nena=menina, nene=menino, princesas, superhéroes=super-heróis,
  didáctico=educativo, star wars, frozen, original, dc | cm, piezas=peças, años=anos, unidades
DOLLS | muñeca=boneca, muñeca bebé=boneca bebê, muñeco=boneco, casa de muñecas=casa de boneca | barbie, baby alive,
  monster high, lol surprise, reborn | vestido, cabello=cabelo, accesorios=acessórios, bebé=bebê, casita=casinha,
  habla=fala
ACTION_FIGURES | figura=boneco, muñeco=boneco, figura de acción=action figure, figura articulada=figura articulada |
  funko pop, dragon ball, batman, marvel legends, naruto | articulado, colección=coleção, anime, busto, goku,
  spiderman
STUFFED_TOYS | peluche=pelúcia, muñeco peluche=bicho de pelúcia, oso=urso, muñeco=boneco | minions, mickey, pokemon,
  unicornio=unicórnio, peppa | oso=urso, gigante, suave=macio, bebé=bebê, almohada=almofada, animales=bichinho
BOARD_GAMES | juego de mesa=jogo de tabuleiro, juego=jogo, cartas=baralho, ajedrez=xadrez, rompecabezas=quebra-cabeça
  | monopoly, uno, catan, jenga, war, estanciero | mesa, cartas, familia=família, tablero=tabuleiro,
  jugadores=jogadores, piezas=peças
DIECAST_VEHICLES | auto=carrinho, autito=carrinho, auto colección=miniatura, camión=caminhão, auto a escala=miniatura
  1 18 | maisto, burago, majorette, welly, matchbox | escala, 1 24, metal, ferrari, fusca, pista
BUILDING_SETS | bloques=blocos, ladrillos=blocos de montar, juego de bloques=jogo de montar, set de construcción=kit
  construção | ninjago, minecraft, lego city, duplo, technic | piezas=peças, armar=montar, compatible=compatível,
  encastre=encaixe, ciudad=cidade, star wars

FAMILY LIGHTING | philips, osram, macroled, sica, avant, taschibra, ourolux, ferrolux, interelec | led, luz fría=luz
  fria, luz cálida=luz quente, bajo consumo=econômica, e27, interior, exterior, blanco=branco, batería=bateria,
  dimerizable=dimerizável, solar, regulable=regulável | w, watts, v, lm, mts=metros
LIGHT_BULBS | lámpara=lâmpada, lámpara led=lâmpada led, foco=lâmpada, dicroica=dicróica, bombilla=lâmpada | bulbo,
  gu10, par 38, filamento, philips hue | fría=fria, rosca, dicroica=dicróica, vintage, casquillo=soquete, bulbo
CEILING_LIGHTS | lámpara=luminária, plafón=plafon, araña=lustre, lámpara colgante=pendente, lámpara techo=luminária
  teto | vignolo, carilux, faroluz, startec, candil | techo=teto, colgante=pendente, aplique=arandela,
  caireles=cristal, living=sala, luces=lâmpadas
TABLE_LAMPS | velador=abajur, lámpara de mesa=luminária de mesa, lámpara=luminária, lámpara escritorio=luminária
  escrivaninha | pixar, tiffany, lava, taschibra desk, sal himalaya | mesa, noche=cabeceira, flexible=flexível,
  pantalla=cúpula, lectura=leitura, escritorio=escritório
FLASHLIGHTS | linterna=lanterna, linterna led=lanterna led, farol=lampião, linterna cabeza=lanterna de cabeça,
  foco=farol | maglite, led lenser, fenix, nitecore, police | recargable=recarregável, táctica=tática, zoom,
  cabeza=cabeça, camping, pilas=pilhas
FLOOD_LIGHTS | reflector=refletor, reflector led=refletor led, proyector=refletor, foco=holofote | candela, demasled,
  avant slim, g light, tango | exterior=externo, jardín=jardim, sensor, ip65, multiled=holofote, cancha=quadra
LED_STRIPS | tira led=fita led, cinta led=fita led, tira=fita, manguera led=mangueira led, luces=luzes | smd 5050,
  3528, neon flex, rgb kit, 5630 | rgb, fuente=fonte, control=controle, rollo=rolo, autoadhesiva=adesiva, metros
"""

# A derived category: suffix or PREFIX_ | head nouns around the product {} | descriptive words | families it is not for.
DERIVED = """
ACCESSORIES | accesorio para {}=acessório para {}, accesorios {}=acessórios {}, adaptador {} | universal,
  práctico=prático, gancho, base |
SPARE_PARTS | repuesto {}=peça {}, repuesto para {}=peça para {}, tapa {}=tampa {}, placa {} | reparación=conserto,
  usado, pieza=peça, genérico | DRINKS PETS BEDDING CLOTHES BEAUTY
COVERS | funda {}=capa {}, funda para {}=capa para {}, cobertor {}=protetor {} | impermeable=impermeável, a medida=sob
  medida, neoprene, tela=tecido |
PROFESSIONAL_ | {} profesional={} profissional, {} industrial, {} gastronómico={} comercial | uso intensivo=uso
  intenso, trifásico, comercio=comércio |
KIDS_ | {} infantil, {} niños={} criança, {} para niños={} para crianças, mini {} | princesas, mickey, frozen,
  chicos=crianças |
PET_ | {} para perro={} para cachorro, {} mascota={} pet, {} gato | perro=cachorro, gato, veterinaria=petshop,
  huesos=ossos | PETS DRINKS CARS
TRAVEL_ | {} de viaje={} de viagem, {} portátil, {} camping, {} para auto={} para carro | compacto, 12v, mochila,
  plegable=dobrável | CARS
STANDS | soporte {}=suporte {}, soporte para {}=suporte para {}, base {}, exhibidor {}=expositor {} | pared=parede,
  pie=pé, hierro=ferro, acrílico |
SETS | juego de {}=jogo de {}, set {}=conjunto {}, kit {}, lote {} | unidades, surtido=sortido, mayorista=atacado,
  completo |
VINTAGE_ | {} antiguo={} antigo, {} vintage, {} retro={} retrô, antiguo {}=antigo {} | colección=coleção, años 60=anos
  60, decoración=decoração, usado |
TOY_ | {} de juguete={} de brinquedo, {} juguete={} brinquedo, juguete {}=brinquedo {} | didáctico=educativo,
  plástico, luz y sonido=luz e som, nena=menina |
BOXES | caja para {}=caixa para {}, estuche {}=estojo {}, organizador {} | cartón=papelão, mdf, divisiones=divisórias,
  tapa=tampa |
PERSONALIZED_ | {} personalizado, {} con nombre={} com nome, {} souvenir={} lembrancinha | nombre=nome, logo,
  cumpleaños=aniversário, grabado=gravado |
MINIATURE_ | {} miniatura, mini {}, llavero {}=chaveiro {}, {} escala | dije=pingente, souvenir=lembrancinha, resina,
  escala |
STICKERS | calco {}=adesivo {}, sticker {}=adesivo {}, vinilo {}=adesivo parede {} | pared=parede,
  autoadhesivo=autocolante, plancha=cartela, pvc |
"""

CONNECTORS = "para, con=com, +, p/, c/, y=e, para tu=para seu, &amp;, compatible con=compatível com, tipo"
LEADS = """kit, set, combo, oferta, pack, nuevo=novo, juego=jogo, promo=promoção, original, par, lote, nueva=nova,
  super oferta, liquidación=liquidação, 2 x, x 2, 10 unidades, 3 un, 2x, remate=queima de estoque, !!, hot sale=black
  friday, mega"""
TAILS = """envío gratis=frete grátis, oferta=promoção, nuevo=novo, garantía=garantia, original, 12 cuotas=12x sem
  juros, c/u=cada, x 2, oferta!!=promoção!!, promo, x unidad=unidade, local=loja, con factura=nota fiscal,
  calidad=qualidade, stock=pronta entrega, x 6, x6, importador=importadora, fact a=nf, caba=sp, mercadopago,
  envíos=sedex, lomas=rj, s/=s/, imperdible=imperdível, cuotas=parcelas"""
ATTRIBUTES = """negro=preto, blanco=branco, rojo=vermelho, azul, verde, rosa, madera=madeira, acero inoxidable=aço
  inox, gris=cinza, grande, plástico, usb, led, metal, digital, universal, chico=pequeno, premium, nacional,
  importado, cuero=couro, doble=duplo, mini, talle=tamanho, inalámbrico=sem fio, 220v=bivolt, 2018, 2019, 2017, 2016,
  2015, 2012, 2010, 2005, 1998, amarillo=amarelo, dorado=dourado, plateado=prata, violeta=roxo, aluminio=alumínio, xl,
  2 en 1=2 em 1, a elección=à escolha, celeste=azul claro, bordó=vinho, tela=tecido, negra=preta, nº 40, 30x40, 1.5,
  0.5, 3/8, 1/2, 40 x 60, usado, a medida=sob medida, c/ tapa=c/ tampa, natural, colores=cores, eco, chica=pequena"""
DIRT = """- , !!! ! / . * , &amp; &quot; ( ) "" '' " % + !!!!!! ... º Ã© &#39; | \x07 \x01 \x7f Â° ° ~ -> $ ;"""
LETTERS = [*"ABCDEFGHJKLMNPRSTVWXZ"]
ROUND = [1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 16, 18, 20, 24, 25, 30, 32, 35, 40, 45, 50, 60, 64, 70, 75, 80, 90, 100,
         110, 120, 128, 150, 180, 200, 220, 240, 250, 256, 300, 350, 360, 400, 450, 500, 512, 600, 700, 750, 800, 900,
         1000, 1200, 1500, 2000]
SYLLABLES = """ba be bi bo bra ca ce co cor da del di do dri el fa fer fi fo ga gen go gri ha ho in ja jo ka ken ki la
  lan le li lo lu ma mar me mi mon na ne ni no nor pa pe pi pol pra qui ra re ri ro ru sa san se si so sol ta te ti to
  tra tu va ve vi vo wa xi ya za zen zo"""

# ------------------------------------------------------------------------------------------------- tables to arrays


def _records(table):
    for record in re.split(r"\n(?=\S)", table.strip()):
        yield [field.strip() for field in " ".join(record.split()).split("|")]


def _items(text):
    """`vino=vinho, lata` -> [[vino, lata], [vinho, lata]]: Spanish, Portuguese."""
    pairs = [(" ".join(item.split()).split("=") * 2)[:2] for item in text.split(",")]
    return [[pair[language] for pair in pairs] for language in (0, 1)]


def _catalogue():
    """Families, and every category that can be had: the tables' own first, then the derived ones."""
    families, base, derived = [], [], []
    for name, *fields in _records(TABLE):
        if name.startswith("FAMILY "):
            families.append((name.split()[1], *map(_items, fields)))
        else:
            base.append((name, len(families) - 1, *map(_items, fields), name))
    for rule, patterns, extra, excluded in _records(DERIVED):
        patterns, extra = _items(patterns), _items(extra)
        for name, family, heads, models, words, _ in base:
            if families[family][0] not in excluded.split():
                derived.append((rule + name if rule.endswith("_") else f"{name}_{rule}", family,
                                [[p.format(h) for h in heads[i][:3] for p in patterns[i]] for i in (0, 1)], models,
                                [extra[i] + words[i][:4] for i in (0, 1)], name))
    return families, base + derived


def category_names(n):
    """Names of the first n categories. Siblings stand together, so that few categories are not easy ones."""
    names = [PREFIX + category[0] for category in _catalogue()[1]]
    if not 2 <= n <= len(names):
        raise UserError(f"--categories {n}: must be between 2 and {len(names)}")
    return names[:n]


def _plain(text):
    return "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))


def _typo(text, rng):
    i = rng.randrange(len(text) - 1) if len(text) > 4 else 0
    if not text[i:i + 2].isalpha() or i == 0:
        return text
    return text[:i] + rng.choice([text[i + 1] + text[i], text[i], text[i] * 2 + text[i + 1],
                                  text[i] + rng.choice("aeiosnrl")]) + text[i + 2:]


def _forms(pieces):
    """Every piece of text as it may be written, one flat array: case (title, lower, upper) x spelling x piece."""
    import pyarrow as pa
    rng = random.Random(0)
    texts = [text for text, _ in pieces]
    plain = [_plain(text) for text in texts]
    spellings = [texts, plain, [text.encode().decode("latin-1") for text in texts]]
    spellings += [[_typo(text, rng) for text in plain] for _ in range(SPELLINGS - 3)]
    forms = [[text if glued else " ".join(word.capitalize() for word in text.split(" "))
              for text, (_, glued) in zip(spelling, pieces, strict=True)] for spelling in spellings]
    forms += [[change(text) for text in spelling] for change in (str.lower, str.upper) for spelling in spellings]
    return pa.concat_arrays([pa.array(form, pa.string()) for form in forms])


def _world(categories):
    """All that does not depend on the seed: the text pool, which texts belong to what, how frequent categories are."""
    import numpy as np
    import pyarrow.compute as pc
    pieces = {("", False): 0}                            # (text, glued to the one before) -> id; 0 is no text

    def add(text, glued=False):
        return pieces.setdefault((text, glued), len(pieces))

    def ragged(lists):                                   # one list of texts per group -> flat ids, start, size
        size = np.array([len(texts) for texts in lists])
        flat = [add(text) if isinstance(text, str) else add(*text) for texts in lists for text in texts]
        return np.array(flat, np.int32), (size.cumsum() - size).astype(np.int32), size.astype(np.float32)

    def words(lists):
        return ragged([[text + " " for text in texts] for texts in lists])

    families, catalogue = _catalogue()
    catalogue = sorted(catalogue[:categories], key=lambda category: category[1])  # families stand together: _sibling
    syllables, units = SYLLABLES.split(), [texts for family in families for texts in family[3]]
    lists = {"H": words([texts for category in catalogue for texts in category[2]]),
             "X": words([["", *DIRT.split()]]),
             "L": words([texts for category in catalogue for texts in category[3]]),
             "W": words([texts for category in catalogue for texts in category[4]]),
             "B": words([texts for family in families for texts in family[1]]),
             "F": words([texts for family in families for texts in family[2]]),
             "U": ragged([[piece for unit in texts for piece in ((unit + " ", True), f" {unit} ")] for texts in units]),
             "R": ragged([syllables, [(s, True) for s in syllables], [(s + " ", True) for s in syllables]]),
             "letters": ragged([[a + b + end for end in ("", "-", " ") for a in LETTERS for b in ["", *LETTERS]]]),
             "number": ragged([[str(n) for n in range(10_000)]]),
             "suffix": ragged([[(end, True) for end in (" ", " ", " ", "a ", "b ", "x ", "-2 ", "br ", "/1 ", "n ")]])}
    for field, text in {"P": LEADS, "T": TAILS, "A": ATTRIBUTES, "M": CONNECTORS}.items():
        lists[field] = words(_items(text))

    position = {category[0]: i for i, category in enumerate(catalogue)}
    product = np.array([position[category[5]] for category in catalogue])    # itself, or what it is derived from
    rng = np.random.default_rng(categories)
    weight = rng.permutation(np.interp(np.linspace(0, 1, categories), *SIZES))
    weight /= weight.sum()
    spanish, reliable = rng.uniform(0.35, 0.65, categories), rng.uniform(0.2, 1.8, categories)
    alone = rng.permutation(categories)[:round(ONE_LANGUAGE * categories)]
    spanish[alone] = np.arange(len(alone)) % 2
    reliable[rng.permutation(categories)[:round(NEVER_RELIABLE * categories)]] = 0
    cumulative, family = np.r_[0, weight.cumsum()], np.array([category[1] for category in catalogue])
    width = [COLUMNS.get(field, 1) for field in FIELDS]
    column = dict(zip(FIELDS, np.split(np.arange(sum(width)), np.cumsum(width)[:-1]), strict=True))
    forms = _forms(list(pieces))
    return SimpleNamespace(
        names=[PREFIX + category[0] for category in catalogue], family=family, weight=weight, spanish=spanish,
        reliable=reliable * RELIABLE / (reliable * weight).sum(), cumulative=cumulative,
        low=cumulative[np.searchsorted(family, family)], high=cumulative[np.searchsorted(family, family, "right")],
        product=product, lists=lists, forms=forms, pieces=len(pieces),
        length=pc.utf8_length(forms[:len(pieces)]).to_numpy(),      # of a title-case piece: nearly that of the others
        orders=np.array([np.concatenate([column[field] for field in order]) for order in ORDERS]))


# ------------------------------------------------------------------------------------------------------------- titles


def _sibling(world, rng, category):
    """Another category for each: of the same family, or any one with probability FAR, by frequency."""
    import numpy as np
    own, low, high = world.weight[category], world.low[category], world.high[category]
    far = (rng.random(len(category)) < FAR) | (high - low - own < 1e-9)
    low, high = np.where(far, 0, low), np.where(far, 1, high)
    point = low + rng.random(len(category)) * (high - low - own)
    point += own * (point >= world.cumulative[category])                     # steps over the category itself
    return np.clip(np.searchsorted(world.cumulative, point, "right") - 1, 0, len(world.names) - 1)


def _generate(world, rng, rows):
    """Titles, true categories, labels, languages (0 Spanish, 1 Portuguese) and reliability of `rows` random rows."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    def chance(p):
        return rng.random(rows, np.float32) < p

    def pick(key, group=0):                              # a piece for each row of its group's list, early ones likelier
        flat, start, size = world.lists[key]
        u = rng.random(rows, np.float32)
        return flat[start[group] + (size[group] * u * np.sqrt(u)).astype(np.int32)]

    category = np.searchsorted(world.cumulative, rng.random(rows), "right") - 1
    category = np.minimum(category, len(world.names) - 1)                    # the last sum may round to below 1
    language = (rng.random(rows) >= world.spanish[category]).astype(np.int64)
    reliable = rng.random(rows) < world.reliable[category]
    label = np.where(~reliable & chance(LABEL_NOISE), _sibling(world, rng, category), category)

    other = world.product[_sibling(world, rng, category)] * 2 + language
    lender = _sibling(world, rng, category) * 2 + language
    own, family = category * 2 + language, world.family[category] * 2 + language
    kind = rng.random(rows, np.float32)
    vague, no_head = kind < VAGUE, kind < VAGUE + NO_HEAD
    codes, numbers, rounded = world.lists["letters"][0], world.lists["number"][0], np.array(ROUND)
    model = (2000 * rng.random(rows) ** 3).astype(np.int64)                  # half of the codes belong to a category
    own_code = chance(0.5)

    def borrowed(field):
        return pick(field, np.where(chance(BORROWED), lender, own))

    columns = {
        "P": [pick("P", language)],
        "H": [pick("H", own)],
        "M": [pick("M", language), pick("H", other), pick("W", other) * chance(0.5)],
        "W": [borrowed("W")],
        "B": [pick("B", family)],
        "L": [borrowed("L")],
        "K": [np.where(own_code, codes[(category * 37 + model * 11) % len(codes)], pick("letters")),
              np.where(own_code, numbers[(category * 7919 + model * 104729) % len(numbers)], pick("number")),
              pick("suffix")],
        "V": [borrowed("W")],
        "F": [pick("F", family)],
        "U": [np.where(chance(0.1), pick("number"), numbers[rng.choice(rounded, rows)]), pick("U", family)],
        "A": [pick("A", language)],
        "R": [pick("R", 0), pick("R", 1), pick("R", 2)],
        "T": [pick("T", language)],
        "X": [pick("X")]}
    shown = {field: chance(p) for field, p in FIELDS.items()}
    shown["V"] &= columns["V"][0] != columns["W"][0]
    shown["H"], shown["M"] = ~no_head, ~no_head & chance(MENTION)
    for field in "WLB":
        shown[field] |= no_head
    for field in "WVLK":
        shown[field] &= ~vague
    ids = np.stack([column * shown[field] for field in FIELDS for column in columns[field]], axis=1)
    ids = np.take_along_axis(ids, world.orders[rng.integers(len(ORDERS), size=rows)], axis=1)  # [rows, columns]

    limit = np.where(chance(SHORT), 12 + 48 * np.sqrt(rng.random(rows)), 60 + 8 * chance(TOO_LONG))
    mid_word = chance(MID_WORD)
    limit[mid_word] = 200
    length = world.length[ids]
    total = length.cumsum(axis=1)
    keep = (ids > 0) & ((total <= limit[:, None]) | (total == length))       # the first phrase stays, however long
    case = np.searchsorted([0.62, 0.84], rng.random(rows))                   # title, lower, upper
    spelling = np.where(chance(MOJIBAKE), 2, chance(PLAIN))
    n = world.pieces
    flat = (ids + (n * (SPELLINGS * case + spelling))[:, None])[keep]
    wrong = rng.integers(len(flat), size=int(MISSPELT * len(flat)))
    flat[wrong] += n * (rng.integers(3, SPELLINGS, size=len(wrong)) - flat[wrong] // n % SPELLINGS)
    offsets = np.r_[0, keep.sum(axis=1).cumsum()].astype(np.int32)
    titles = pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets), world.forms.take(pa.array(flat))), "")
    titles = pc.if_else(pa.array(mid_word), pc.utf8_slice_codeunits(titles, 0, 60), titles)
    return pc.utf8_trim_whitespace(titles), category, label, language, reliable


def _csv(world, tails, seed, chunk, rows):
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    titles, _, label, language, reliable = _generate(world, np.random.default_rng([seed, chunk]), rows)
    quote = pc.match_substring_regex(titles, '[",]')
    quoted = pc.binary_join_element_wise('"', pc.replace_substring(titles.filter(quote), '"', '""'), '"', "")
    lines = pc.binary_join_element_wise(pc.replace_with_mask(titles, quote, quoted),
                                        tails.take(pa.array(label * 4 + language * 2 + reliable)), "")
    return pc.binary_join(pa.ListArray.from_arrays(pa.array([0, rows], pa.int32()), lines), "")[0].as_buffer()


# --------------------------------------------------------------------------------------------------------------- file


def write_csv(path, rows=100_000, categories=120, seed=0):
    """Write the data set. An older file of that name stays until the new one is whole."""
    category_names(categories)
    with data.write_beside(path, "wb") as file:
        import pyarrow as pa
        from tqdm import tqdm
        world = _world(categories)
        tails = pa.array([f",{quality},{language},{name}\n" for name in world.names
                          for language in ("spanish", "portuguese") for quality in ("unreliable", "reliable")])
        file.write(b"title,label_quality,language,category\n")
        with ThreadPoolExecutor(2) as pool, tqdm(total=rows, unit=" rows", unit_scale=True, disable=None) as bar:
            pending = deque()
            for chunk, start in enumerate(range(0, rows, CHUNK)):
                pending.append(pool.submit(_csv, world, tails, seed, chunk, min(CHUNK, rows - start)))
                if len(pending) == 3:                # written in order, whichever thread ends first
                    file.write(pending.popleft().result())
                    bar.update(CHUNK)
            for future in pending:
                file.write(future.result())
            bar.update(rows - bar.n)


def main():
    parser = data.argument_parser(__doc__)
    add = parser.add_argument
    add("--rows", type=data.positive(int), default=100_000, help="titles to write")
    add("--categories", type=int, default=120, help="the course subset has 632, the challenge 1588")
    add("--seed", type=data.seed, default=0, help="another seed is another sample from the same categories")
    add("--out", default="data/raw/synthetic.csv", help="file to write; its folder is created")
    args = parser.parse_args()
    start = time.perf_counter()
    write_csv(args.out, args.rows, args.categories, args.seed)
    print(f"SYNTHETIC DATA, made from rules: {args.out}, {args.rows:,} rows, {args.categories:,} categories, "
          f"{args.rows / (time.perf_counter() - start):,.0f} rows/s")


if __name__ == "__main__":
    data.run(main)
